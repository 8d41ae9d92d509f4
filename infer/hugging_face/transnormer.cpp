// The released TransNormerLLM checkpoints: config.json and the names of the tensors.
#include "infer/hugging_face/transnormer.h"

#include "infer/hugging_face/config_reader.h"
#include "model/families/transnormer/config.h"

namespace fulmen {

namespace {

const HuggingFaceAdapter::Kind kind = {"transnormer", "TransnormerForCausalLM"};

// Layers marked 1 in linear_use_lrpe_list; layer 0 where there is no list.
std::vector<std::int64_t> lrpe_layers(const ConfigReader& reader, std::int64_t layers) {
  if (!reader.has("linear_use_lrpe_list")) return {0};
  const nlohmann::json& list = reader.value("linear_use_lrpe_list");
  if (!list.is_array() || static_cast<std::int64_t>(list.size()) != layers)
    throw UserError(reader.where(), fmt::format("linear_use_lrpe_list does not list {} layers", layers));
  std::vector<std::int64_t> marked;
  for (std::size_t layer = 0; layer < list.size(); ++layer) {
    if (!list[layer].is_number_integer())
      throw UserError(reader.where(), "linear_use_lrpe_list holds something else than 0 and 1");
    if (list[layer].get<std::int64_t>() != 0) marked.push_back(static_cast<std::int64_t>(layer));
  }
  return marked;
}

std::shared_ptr<const ModelConfig> read(const ConfigReader& reader, const std::string&) {
  TransnormerConfig config;
  config.layers = reader.integer("decoder_layers");
  config.hidden = reader.integer("decoder_embed_dim");
  config.heads = reader.integer("decoder_attention_heads");
  config.vocabulary = reader.integer("vocab_size");
  const std::int64_t glu = reader.integer("glu_dim");
  config.glu = glu == -1 ? config.hidden : glu;
  config.initializer_std = reader.number("init_std", config.initializer_std);
  if (reader.has("gate_dim")) {
    config.variant = "tnl3";
    config.gate_rank = reader.integer("gate_dim");
  }
  reader.pass_over({"add_bos_token"});
  reader.require("linear_use_lrpe", true);  // the switch over the list
  reader.require("hidden_dim", config.hidden);
  reader.require("no_scale_embedding", false);
  reader.require("bias", false);
  reader.require("norm_type", "simplermsnorm");
  reader.require("linear_act_fun", "swish");
  reader.require("tie_word_embeddings", true);
  if (config.layers > 0) config.lrpe_layers = lrpe_layers(reader, config.layers);
  return std::make_shared<const TransnormerConfig>(std::move(config));
}

std::string write(const ModelConfig& model, const std::string& torch_dtype) {
  const auto& config = as<TransnormerConfig>(model);
  if (const double known = TransnormerConfig().norm_epsilon; config.norm_epsilon != known)
    throw UserError("model.norm_epsilon",
                    fmt::format("the norms have epsilon {}, config.json knows only {}", config.norm_epsilon, known),
                    "such a model cannot be exported");
  std::vector<int> lrpe;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) lrpe.push_back(config.has_lrpe(layer) ? 1 : 0);
  nlohmann::ordered_json json = {
      {"architectures", {kind.architecture}},
      {"auto_map",
       {{"AutoConfig", "configuration_transnormer.TransnormerConfig"},
        {"AutoModelForCausalLM", "modeling_transnormer.TransnormerForCausalLM"}}},
      {"model_type", kind.model_type},
      {"vocab_size", config.vocabulary},
      {"use_cache", true},
      {"init_std", config.initializer_std},
      {"decoder_embed_dim", config.hidden},
      {"decoder_layers", config.layers},
      {"decoder_attention_heads", config.heads},
      {"no_scale_embedding", false},
      {"add_bos_token", false},
      {"norm_type", "simplermsnorm"},
      {"linear_use_lrpe_list", lrpe},
      {"hidden_dim", config.hidden},
      {"linear_act_fun", "swish"},
      {"glu_dim", config.glu},
      {"bias", false},
      {"tie_word_embeddings", true},
      {"torch_dtype", torch_dtype},
  };
  if (config.low_rank_gate()) json["gate_dim"] = config.gate_rank;
  return json.dump(2) + "\n";
}

// The names equal the checkpoints' names. The modelling code's state dict has the head apart from the embedding.
void map_tensors(const ModelConfig&, const std::set<std::string>&, TensorMap& map) {
  map.add_others();
  map.add_repeat({.released = "lm_head.weight", .original = tied_embedding_name});
}

}  // namespace

HuggingFaceAdapter transnormer_adapter() { return {TransnormerConfig().family(), {kind}, read, write, map_tensors}; }

}  // namespace fulmen
