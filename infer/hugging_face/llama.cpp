// The LLaMA family's folders, as transformers has them.
#include "infer/hugging_face/llama.h"

#include "infer/hugging_face/config_reader.h"
#include "infer/hugging_face/rope_keys.h"
#include "model/families/llama/config.h"

namespace fulmen {

namespace {

const HuggingFaceAdapter::Kind kind = {"llama", "LlamaForCausalLM"};

RopeKeys rope_of(const LlamaConfig& config) {
  return {config.rope_theta,
          config.rope_type,
          {config.rope_factor, config.rope_low_frequency_factor, config.rope_high_frequency_factor,
           static_cast<double>(config.rope_original_length)}};
}

std::shared_ptr<const ModelConfig> read(const ConfigReader& reader, const std::string&) {
  LlamaConfig config;
  config.layers = reader.integer("num_hidden_layers");
  config.hidden = reader.integer("hidden_size");
  config.heads = reader.integer("num_attention_heads");
  config.kv_heads = reader.integer("num_key_value_heads", 0);
  config.head_width = reader.integer("head_dim", 0);
  config.glu = reader.integer("intermediate_size");
  config.vocabulary = reader.integer("vocab_size");
  config.norm_epsilon = reader.number("rms_norm_eps", 1e-6);
  config.initializer_std = reader.number("initializer_range", config.initializer_std);
  config.tied_head = reader.boolean("tie_word_embeddings", false);
  const RopeKeys rope = read_rope(reader, rope_of(config));
  config.rope_theta = rope.theta;
  config.rope_type = rope.type;
  config.rope_factor = rope.scaling.factor;
  config.rope_low_frequency_factor = rope.scaling.low_frequency_factor;
  config.rope_high_frequency_factor = rope.scaling.high_frequency_factor;
  config.rope_original_length = static_cast<std::int64_t>(rope.scaling.original_length);
  reader.require("hidden_act", "silu");
  reader.require("attention_bias", false);
  reader.require("mlp_bias", false);
  reader.pass_over({"max_position_embeddings", "attention_dropout", "pretraining_tp"});
  return std::make_shared<const LlamaConfig>(std::move(config));
}

std::string write(const ModelConfig& model, const std::string& torch_dtype) {
  const auto& config = as<LlamaConfig>(model);
  const bool longer = config.rope_type == "llama3";
  nlohmann::ordered_json json = {
      {"architectures", {kind.architecture}},
      {"model_type", kind.model_type},
      {"vocab_size", config.vocabulary},
      {"hidden_size", config.hidden},
      {"intermediate_size", config.glu},
      {"num_hidden_layers", config.layers},
      {"num_attention_heads", config.heads},
      {"num_key_value_heads", config.kv()},
      {"head_dim", config.width()},
      {"hidden_act", "silu"},
      {"max_position_embeddings",
       longer ? static_cast<std::int64_t>(config.rope_factor * static_cast<double>(config.rope_original_length))
              : 4096},
      {"initializer_range", config.initializer_std},
      {"rms_norm_eps", config.norm_epsilon},
      {"use_cache", true},
      {"tie_word_embeddings", config.tied_head},
      {"attention_bias", false},
      {"mlp_bias", false},
      {"attention_dropout", 0.0},
      {"torch_dtype", torch_dtype},
  };
  write_rope(rope_of(config), json);
  return json.dump(2) + "\n";
}

void map_tensors(const ModelConfig& model, const std::set<std::string>&, TensorMap& map) {
  map.add_others();
  map.pass_over("rotary_emb.inv_freq");
  if (as<LlamaConfig>(model).tied_head)
    map.add_repeat({.released = "lm_head.weight", .original = model.embedding().name, .written = false});
}

}  // namespace

HuggingFaceAdapter llama_adapter() { return {LlamaConfig().family(), {kind}, read, write, map_tensors}; }

}  // namespace fulmen
