// GLA's folders, as flash-linear-attention has them.
#include "infer/hugging_face/gla.h"

#include "infer/hugging_face/config_reader.h"
#include "model/families/gla/config.h"

namespace fulmen {

namespace {

const HuggingFaceAdapter::Kind kind = {"gla", "GLAForCausalLM"};

// flash-linear-attention's layer has them without a key in config.json.
constexpr std::int64_t gate_rank = 16;
constexpr double gate_divisor = 16.0;

// Without intermediate_size: 2/3 of hidden_ratio x hidden, up to the next multiple of 256.
std::int64_t glu_of(const ConfigReader& reader, std::int64_t hidden) {
  const auto ratio = reader.integer("hidden_ratio", 4);
  const std::int64_t given = reader.integer("intermediate_size", 0);
  if (given > 0 || hidden <= 0 || hidden > (1 << 20) || ratio <= 0 || ratio > (1 << 10)) return given;
  return (hidden * ratio * 2 / 3 + 255) / 256 * 256;
}

std::shared_ptr<const ModelConfig> read(const ConfigReader& reader, const std::string&) {
  GlaConfig config;
  config.layers = reader.integer("num_hidden_layers");
  config.hidden = reader.integer("hidden_size");
  config.heads = reader.integer("num_heads");
  config.vocabulary = reader.integer("vocab_size");
  config.glu = glu_of(reader, config.hidden);
  const auto hidden = static_cast<double>(config.hidden);
  config.key_width = static_cast<std::int64_t>(reader.number("expand_k", 0.5) * hidden);
  config.value_width = static_cast<std::int64_t>(reader.number("expand_v", 1.0) * hidden);
  config.gate_rank = gate_rank;
  config.gate_divisor = gate_divisor;
  config.norm_epsilon = reader.number("norm_eps", 1e-6);
  config.initializer_std = reader.number("initializer_range", config.initializer_std);
  reader.require("num_kv_heads", nullptr);
  reader.require("feature_map", nullptr);
  reader.require("hidden_act", "swish");
  reader.require("use_short_conv", false);
  reader.require("use_output_gate", true);
  reader.require("use_gk", true);
  reader.require("use_gv", false);
  reader.require("clamp_min", nullptr);
  reader.require("elementwise_affine", true);
  reader.require("attn", nullptr);
  reader.require("tie_word_embeddings", false);
  reader.pass_over({"attn_mode", "conv_size", "max_position_embeddings", "fuse_norm", "fuse_cross_entropy",
                    "fuse_swiglu", "fuse_linear_cross_entropy", "use_l2warp", "share_conv_kernel"});
  return std::make_shared<const GlaConfig>(std::move(config));
}

std::string write(const ModelConfig& model, const std::string& torch_dtype) {
  const auto& config = as<GlaConfig>(model);
  if (config.gate_rank != gate_rank || config.gate_divisor != gate_divisor)
    throw UserError("export",
                    fmt::format("flash-linear-attention's GLA has model.gate_rank: {} and model.gate_divisor: {}; this "
                                "model differs",
                                gate_rank, gate_divisor),
                    "such a model cannot be exported");
  const auto hidden = static_cast<double>(config.hidden);
  const nlohmann::ordered_json json = {
      {"architectures", {kind.architecture}},
      {"model_type", kind.model_type},
      {"vocab_size", config.vocabulary},
      {"hidden_size", config.hidden},
      {"intermediate_size", config.glu},
      {"num_hidden_layers", config.layers},
      {"num_heads", config.heads},
      {"expand_k", static_cast<double>(config.keys()) / hidden},
      {"expand_v", static_cast<double>(config.values()) / hidden},
      {"hidden_act", "swish"},
      {"norm_eps", config.norm_epsilon},
      {"initializer_range", config.initializer_std},
      {"tie_word_embeddings", false},
      {"torch_dtype", torch_dtype},
  };
  return json.dump(2) + "\n";
}

// The family's own names are flash-linear-attention's.
void map_tensors(const ModelConfig& model, const std::set<std::string>&, TensorMap& map) {
  const std::vector<std::string> of_layer = {"attn_norm.weight",      "attn.q_proj.weight",
                                             "attn.k_proj.weight",    "attn.v_proj.weight",
                                             "attn.g_proj.weight",    "attn.gk_proj.0.weight",
                                             "attn.gk_proj.1.weight", "attn.gk_proj.1.bias",
                                             "attn.o_proj.weight",    "attn.g_norm_swish_gate.weight",
                                             "mlp_norm.weight",       "mlp.gate_proj.weight",
                                             "mlp.up_proj.weight",    "mlp.down_proj.weight"};
  const auto add = [&](const std::string& name) { map.add(name, map.whole(name)); };
  add("model.embeddings.weight");
  for (std::int64_t layer = 0; layer < model.layers; ++layer)
    for (const std::string& name : of_layer) add(fmt::format("model.layers.{}.{}", layer, name));
  add("model.norm.weight");
  add("lm_head.weight");
}

}  // namespace

HuggingFaceAdapter gla_adapter() { return {GlaConfig().family(), {kind}, read, write, map_tensors}; }

}  // namespace fulmen
