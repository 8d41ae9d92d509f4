// The layers of GPT-1 and GPT-2.
#include <cmath>

#include "model/branch.h"
#include "model/families/gpt/config.h"
#include "model/mixers/feed_forward.h"
#include "model/mixers/softmax_attention.h"

namespace fulmen {

namespace {

Norm layer_norm(const GptConfig& config, const std::string& name) {
  return {config.norm_epsilon,
          NormKind::layer,
          {declare_norm_weight(name + ".weight", config.hidden, 1.0),
           declare_norm_weight(name + ".bias", config.hidden, 0.0)}};
}

std::string layer_prefix(std::int64_t layer) { return fmt::format("transformer.h.{}.", layer); }

// A norm after a branch is the norm in front of the next.
Norm norm_of(const GptConfig& config, std::int64_t layer, bool of_attention) {
  const std::string prefix = layer_prefix(layer);
  if (!config.norms_after()) return layer_norm(config, prefix + (of_attention ? "ln_1" : "ln_2"));
  if (!of_attention) return layer_norm(config, prefix + "ln_1");
  if (layer > 0) return layer_norm(config, layer_prefix(layer - 1) + "ln_2");
  return {.identity = true};
}

// W [in, out], split by its inputs or its outputs.
ParameterDeclaration declare_transposed(const std::string& name, std::int64_t in, std::int64_t out, double deviation,
                                        int dimension, std::int64_t units) {
  ParameterDeclaration weight = declare_weight(name, {in, out}, normal_initializer(deviation), dimension, units);
  weight.transposed = true;
  return weight;
}

ParameterDeclaration declare_bias(const std::string& name, std::int64_t width, std::int64_t units) {
  return declare_vector(
      name, {width}, [](const RandomStream&, std::int64_t) { return 0.0; }, units);
}

// Query, key and value, a third each.
void cut_in_three(ParameterDeclaration& declaration) {
  const Segment whole = declaration.segments.front();
  declaration.segments.clear();
  for (std::int64_t part = 0; part < 3; ++part)
    declaration.segments.push_back({whole.tensor, part * whole.extent / 3, whole.extent / 3, whole.units});
}

Branch attention(const GptConfig& config, std::int64_t layer, double last_deviation) {
  const std::string prefix = layer_prefix(layer) + "attn.";
  const std::int64_t hidden = config.hidden, heads = config.heads;
  ParameterDeclaration projections =
      declare_transposed(prefix + "c_attn.weight", hidden, 3 * hidden, config.initializer_std, 1, heads);
  ParameterDeclaration bias = declare_bias(prefix + "c_attn.bias", 3 * hidden, heads);
  cut_in_three(projections);
  cut_in_three(bias);
  return softmax_attention(
      {.hidden = hidden,
       .head_width = hidden / heads,
       .norm = norm_of(config, layer, true),
       .junction = {.from_norm = config.norms_after()},
       .projections = std::move(projections),
       .projections_bias = std::move(bias),
       .out = declare_transposed(prefix + "c_proj.weight", hidden, hidden, last_deviation, 0, heads),
       .out_bias = declare_norm_weight(prefix + "c_proj.bias", hidden, 0.0)});
}

Branch channel_mixer(const GptConfig& config, std::int64_t layer, double last_deviation) {
  const std::string prefix = layer_prefix(layer) + "mlp.";
  const std::int64_t hidden = config.hidden, inner = config.inner();
  return feed_forward(
      {.hidden = hidden,
       .norm = norm_of(config, layer, false),
       .junction = {.from_norm = config.norms_after()},
       .activation = Activation::gelu_tanh,
       .first = declare_transposed(prefix + "c_fc.weight", hidden, inner, config.initializer_std, 1, inner),
       .second = declare_transposed(prefix + "c_proj.weight", inner, hidden, last_deviation, 0, inner),
       .first_bias = declare_bias(prefix + "c_fc.bias", inner, inner),
       .second_bias = declare_norm_weight(prefix + "c_proj.bias", hidden, 0.0)});
}

}  // namespace

HeadSpec GptConfig::head() const {
  return {layer_norm(*this, norms_after() ? layer_prefix(layers - 1) + "ln_2" : "transformer.ln_f"), embedding().name};
}

std::vector<Branch> GptConfig::layer(std::int64_t layer) const {
  // GPT-2's products into the residual stream start smaller, by the number of branches that add to it.
  const double last_deviation =
      norms_after() ? initializer_std : initializer_std / std::sqrt(2.0 * static_cast<double>(layers));
  return {attention(*this, layer, last_deviation), channel_mixer(*this, layer, last_deviation)};
}

}  // namespace fulmen
