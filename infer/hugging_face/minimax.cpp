// MiniMax's folders, as transformers has them.
#include "infer/hugging_face/minimax.h"

#include "infer/hugging_face/config_reader.h"
#include "infer/hugging_face/rope_keys.h"
#include "model/families/minimax/config.h"

namespace fulmen {

namespace {

const HuggingFaceAdapter::Kind kind = {"minimax", "MiniMaxForCausalLM"};

std::vector<std::string> layer_types(const ConfigReader& reader) {
  std::vector<std::string> types;
  for (const std::string& type : reader.texts("layer_types")) {
    if (type != "linear_attention" && type != "full_attention")
      throw UserError(reader.where(), fmt::format("layer_types names '{}'", type),
                      "models that can be imported have linear_attention and full_attention");
    types.emplace_back(type == "full_attention" ? "softmax" : "linear");
  }
  return types;
}

std::shared_ptr<const ModelConfig> read(const ConfigReader& reader, const std::string&) {
  MinimaxConfig config;
  config.layers = reader.integer("num_hidden_layers");
  config.hidden = reader.integer("hidden_size");
  config.heads = reader.integer("num_attention_heads");
  config.kv_heads = reader.integer("num_key_value_heads", 0);
  config.head_width = reader.integer("head_dim", 0);
  config.vocabulary = reader.integer("vocab_size");
  config.expert_glu = reader.integer("intermediate_size");
  config.experts = reader.integer("num_local_experts");
  config.experts_per_token = reader.integer("num_experts_per_tok", config.experts_per_token);
  config.layer_types = layer_types(reader);
  config.linear_alpha = reader.number("linear_attn_alpha_factor", 1.0);
  config.linear_beta = reader.number("linear_attn_beta_factor", 1.0);
  config.softmax_alpha = reader.number("full_attn_alpha_factor", 1.0);
  config.softmax_beta = reader.number("full_attn_beta_factor", 1.0);
  config.mlp_alpha = reader.number("mlp_alpha_factor", 1.0);
  config.mlp_beta = reader.number("mlp_beta_factor", 1.0);
  config.router_loss = reader.number("router_aux_loss_coef", config.router_loss);
  config.norm_epsilon = reader.number("rms_norm_eps", config.norm_epsilon);
  config.initializer_std = reader.number("initializer_range", config.initializer_std);
  config.rope_theta = read_rope(reader, {.theta = config.rope_theta}).theta;
  reader.require("hidden_act", "silu");
  reader.require("tie_word_embeddings", false);
  reader.require("router_jitter_noise", 0.0);
  reader.require("sliding_window", nullptr);
  if (config.heads > 0) reader.require("rotary_dim", config.width());
  reader.pass_over({"max_position_embeddings", "attention_dropout", "block_size", "output_router_logits"});
  return std::make_shared<const MinimaxConfig>(std::move(config));
}

std::string write(const ModelConfig& model, const std::string& torch_dtype) {
  const auto& config = as<MinimaxConfig>(model);
  if (config.experts == 0)
    throw UserError("model.experts", "is 0; MiniMax's config.json knows no dense channel mixers",
                    "such a model cannot be exported");
  std::vector<std::string> types;
  for (const std::string& type : config.layer_types)
    types.emplace_back(type == "softmax" ? "full_attention" : "linear_attention");
  nlohmann::ordered_json json = {
      {"architectures", {kind.architecture}},
      {"model_type", kind.model_type},
      {"vocab_size", config.vocabulary},
      {"hidden_size", config.hidden},
      {"intermediate_size", config.expert_glu},
      {"num_hidden_layers", config.layers},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.kv()},
      {"head_dim", config.width()},
      {"layer_types", types},
      {"num_local_experts", config.experts},
      {"num_experts_per_tok", config.experts_per_token},
      {"linear_attn_alpha_factor", config.linear_alpha},
      {"linear_attn_beta_factor", config.linear_beta},
      {"full_attn_alpha_factor", config.softmax_alpha},
      {"full_attn_beta_factor", config.softmax_beta},
      {"mlp_alpha_factor", config.mlp_alpha},
      {"mlp_beta_factor", config.mlp_beta},
      {"router_aux_loss_coef", config.router_loss},
      {"router_jitter_noise", 0.0},
      {"hidden_act", "silu"},
      {"max_position_embeddings", 4096},
      {"initializer_range", config.initializer_std},
      {"rms_norm_eps", config.norm_epsilon},
      {"tie_word_embeddings", false},
      {"torch_dtype", torch_dtype},
  };
  write_rope({.theta = config.rope_theta}, json);
  return json.dump(2) + "\n";
}

// Experts lie apart, w1 the gate, w3 the other factor, w2 the product's end; in newer folders they are stacked.
void map_experts(const MinimaxConfig& config, const std::string& layer, TensorMap& map) {
  const std::string logical = layer + "mlp.experts.", released = layer + "block_sparse_moe.experts.";
  for (std::int64_t e = 0; e < config.experts; ++e) {
    const std::string expert = released + std::to_string(e);
    map.add_item(expert + ".w1.weight", map.item_rows(logical + "gate_up_proj", e, 0, config.expert_glu));
    map.add_item(expert + ".w2.weight", map.item(logical + "down_proj", e));
    map.add_item(expert + ".w3.weight",
                 map.item_rows(logical + "gate_up_proj", e, config.expert_glu, config.expert_glu));
  }
  map.add(layer + "block_sparse_moe.gate.weight", map.whole(layer + "mlp.gate.weight"));
}

void map_tensors(const ModelConfig& model, const std::set<std::string>& held, TensorMap& map) {
  const auto& config = as<MinimaxConfig>(model);
  const bool stacked = held.contains("model.layers.0.mlp.experts.gate_up_proj");
  for (std::int64_t layer = 0; !stacked && layer < config.layers; ++layer)
    map_experts(config, fmt::format("model.layers.{}.", layer), map);
  map.add_others();
  for (const char* const buffer : {"diagonal_decay", "key_decay", "query_decay", "slope_rate"}) map.pass_over(buffer);
}

}  // namespace

HuggingFaceAdapter minimax_adapter() { return {MinimaxConfig().family(), {kind}, read, write, map_tensors}; }

}  // namespace fulmen
