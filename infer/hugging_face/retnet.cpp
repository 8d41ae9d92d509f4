// RetNet's folders, as flash-linear-attention has them.
#include "infer/hugging_face/retnet.h"

#include "infer/hugging_face/config_reader.h"
#include "model/families/retnet/config.h"

namespace fulmen {

namespace {

const HuggingFaceAdapter::Kind kind = {"retnet", "RetNetForCausalLM"};

// Without intermediate_size: 2/3 of hidden_ratio x hidden, up to the next multiple of 256.
std::int64_t glu_of(const ConfigReader& reader, std::int64_t hidden) {
  const auto ratio = reader.integer("hidden_ratio", 2);
  const std::int64_t given = reader.integer("intermediate_size", 0);
  if (given > 0 || hidden <= 0 || hidden > (1 << 20) || ratio <= 0 || ratio > (1 << 10)) return given;
  return (hidden * ratio * 2 / 3 + 255) / 256 * 256;
}

std::shared_ptr<const ModelConfig> read(const ConfigReader& reader, const std::string&) {
  RetnetConfig config;
  config.rotation = "rope";
  config.head_norm_gain = true;
  config.layers = reader.integer("num_hidden_layers");
  config.hidden = reader.integer("hidden_size");
  config.heads = reader.integer("num_heads");
  config.vocabulary = reader.integer("vocab_size");
  config.glu = glu_of(reader, config.hidden);
  config.value_width = static_cast<std::int64_t>(reader.number("expand_v", 2.0) * static_cast<double>(config.hidden));
  config.norm_epsilon = reader.number("norm_eps", 1e-6);
  config.head_norm_epsilon = config.norm_epsilon;
  config.initializer_std = reader.number("initializer_range", config.initializer_std);
  reader.require("expand_k", 1);
  reader.require("num_kv_heads", nullptr);
  reader.require("feature_map", nullptr);
  reader.require("hidden_act", "swish");
  reader.require("use_short_conv", false);
  reader.require("use_output_gate", true);
  reader.require("elementwise_affine", true);
  reader.require("attn", nullptr);
  reader.require("tie_word_embeddings", false);
  reader.pass_over({"attn_mode", "conv_size", "max_position_embeddings", "fuse_norm", "fuse_cross_entropy",
                    "fuse_swiglu", "fuse_linear_cross_entropy", "use_l2warp", "share_conv_kernel"});
  return std::make_shared<const RetnetConfig>(std::move(config));
}

std::string write(const ModelConfig& model, const std::string& torch_dtype) {
  const auto& config = as<RetnetConfig>(model);
  if (config.rotation != "rope" || !config.head_norm_gain || config.scale_embedding ||
      config.head_norm_epsilon != config.norm_epsilon)
    throw UserError("export",
                    "flash-linear-attention's RetNet has model.rotation: rope, model.head_norm_gain: true, "
                    "model.scale_embedding: false and equal epsilons; this model differs",
                    "such a model cannot be exported");
  const nlohmann::ordered_json json = {
      {"architectures", {kind.architecture}},
      {"model_type", kind.model_type},
      {"vocab_size", config.vocabulary},
      {"hidden_size", config.hidden},
      {"intermediate_size", config.glu},
      {"num_hidden_layers", config.layers},
      {"num_heads", config.heads},
      {"expand_k", 1},
      {"expand_v", static_cast<double>(config.values()) / static_cast<double>(config.hidden)},
      {"hidden_act", "swish"},
      {"norm_eps", config.norm_epsilon},
      {"initializer_range", config.initializer_std},
      {"tie_word_embeddings", false},
      {"torch_dtype", torch_dtype},
  };
  return json.dump(2) + "\n";
}

void map_tensors(const ModelConfig& model, const std::set<std::string>&, TensorMap& map) {
  const std::vector<std::pair<std::string, std::string>> of_layer = {
      {"attn_norm.weight", "retention_layer_norm.weight"},
      {"attn.q_proj.weight", "retention.q_proj.weight"},
      {"attn.k_proj.weight", "retention.k_proj.weight"},
      {"attn.v_proj.weight", "retention.v_proj.weight"},
      {"attn.g_proj.weight", "retention.g_proj.weight"},
      {"attn.o_proj.weight", "retention.out_proj.weight"},
      {"attn.g_norm_swish_gate.weight", "retention.g_norm.weight"},
      {"mlp_norm.weight", "final_layer_norm.weight"},
      {"mlp.gate_proj.weight", "ffn.fc1.weight"},
      {"mlp.up_proj.weight", "ffn.gate.weight"},
      {"mlp.down_proj.weight", "ffn.fc2.weight"},
  };
  map.add("model.embeddings.weight", map.whole("embed_tokens.weight"));
  for (std::int64_t layer = 0; layer < model.layers; ++layer)
    for (const auto& [released, logical] : of_layer)
      map.add(fmt::format("model.layers.{}.{}", layer, released),
              map.whole(fmt::format("layers.{}.{}", layer, logical)));
  map.add("model.norm.weight", map.whole("layer_norm.weight"));
  map.add("lm_head.weight", map.whole("output_projection.weight"));
  map.pass_over("rotary.inv_freq");
}

}  // namespace

HuggingFaceAdapter retnet_adapter() { return {RetnetConfig().family(), {kind}, read, write, map_tensors}; }

}  // namespace fulmen
