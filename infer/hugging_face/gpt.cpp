// GPT-1's and GPT-2's folders, as transformers has them.
#include "infer/hugging_face/gpt.h"

#include <algorithm>

#include "infer/hugging_face/config_reader.h"
#include "model/families/gpt/config.h"

namespace fulmen {

namespace {

const HuggingFaceAdapter::Kind gpt2 = {"gpt2", "GPT2LMHeadModel"}, gpt1 = {"openai-gpt", "OpenAIGPTLMHeadModel"};
const std::string prefix = "transformer.";

std::shared_ptr<const ModelConfig> read(const ConfigReader& reader, const std::string& model_type) {
  GptConfig config;
  config.norm_place = model_type == gpt1.model_type ? "after" : "before";
  config.layers = reader.integer("n_layer");
  config.hidden = reader.integer("n_embd");
  config.heads = reader.integer("n_head");
  config.positions = reader.integer("n_positions");
  config.vocabulary = reader.integer("vocab_size");
  config.norm_epsilon = reader.number("layer_norm_epsilon", config.norm_epsilon);
  config.initializer_std = reader.number("initializer_range", config.initializer_std);
  reader.require("n_ctx", config.positions);
  reader.require("tie_word_embeddings", true);
  reader.pass_over({"attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_activation", "summary_first_dropout",
                    "summary_proj_to_labels", "summary_type", "summary_use_proj", "predict_special_tokens"});
  if (config.norms_after()) {
    reader.require("afn", "gelu");
  } else {
    config.ffn = reader.integer("n_inner", 0);
    reader.require("activation_function", "gelu_new");
    reader.require("scale_attn_weights", true);
    reader.require("scale_attn_by_inverse_layer_idx", false);
    reader.pass_over({"reorder_and_upcast_attn"});
  }
  return std::make_shared<const GptConfig>(std::move(config));
}

std::string write(const ModelConfig& model, const std::string& torch_dtype) {
  const auto& config = as<GptConfig>(model);
  const HuggingFaceAdapter::Kind& kind = config.norms_after() ? gpt1 : gpt2;
  nlohmann::ordered_json json = {
      {"architectures", {kind.architecture}},
      {"model_type", kind.model_type},
      {"vocab_size", config.vocabulary},
      {"n_positions", config.positions},
      {"n_embd", config.hidden},
      {"n_layer", config.layers},
      {"n_head", config.heads},
      {"layer_norm_epsilon", config.norm_epsilon},
      {"initializer_range", config.initializer_std},
      {"attn_pdrop", 0.0},
      {"embd_pdrop", 0.0},
      {"resid_pdrop", 0.0},
      {"tie_word_embeddings", true},
      {"torch_dtype", torch_dtype},
  };
  if (config.norms_after()) {
    if (config.inner() != 4 * config.hidden)
      throw UserError("model.ffn", fmt::format("is {}; GPT-1's config.json knows only 4 x hidden", config.inner()),
                      "such a model cannot be exported");
    json["afn"] = "gelu";
  } else {
    json["n_inner"] = config.inner();
    json["activation_function"] = "gelu_new";
  }
  return json.dump(2) + "\n";
}

// The weights without a head have no prefix in the first published folders.
void map_tensors(const ModelConfig& model, const std::set<std::string>& held, TensorMap& map) {
  const std::string embedding = model.embedding().name;
  const bool bare = held.contains(embedding.substr(prefix.size()));
  const auto released = [&](const std::string& name) { return bare ? name.substr(prefix.size()) : name; };
  map.add_others(released);
  map.pass_over(".attn.bias");  // the causal mask
  map.pass_over(".attn.masked_bias");
  map.pass_over("position_ids");
  map.add_repeat({.released = "lm_head.weight", .original = released(embedding), .written = false});
}

}  // namespace

HuggingFaceAdapter gpt_adapter() { return {GptConfig().family(), {gpt2, gpt1}, read, write, map_tensors}; }

}  // namespace fulmen
