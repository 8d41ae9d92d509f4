// config.json of the released TransNormerLLM checkpoints.
#include <nlohmann/json.hpp>

#include "framework/error.h"
#include "framework/files.h"
#include "infer/hugging_face.h"

namespace fulmen {

namespace {

using Json = nlohmann::ordered_json;

class ConfigReader {
 public:
  explicit ConfigReader(const std::filesystem::path& path) : where_(path.string()) {
    json_ = Json::parse(read_text(path), nullptr, false);
    if (json_.is_discarded() || !json_.is_object())
      throw UserError(where_, "is not a JSON object", "the file is damaged");
  }

  std::int64_t integer(const char* key) const {
    if (!json_.contains(key))
      throw UserError(where_, fmt::format("has no {}", key), "it is not a TransNormerLLM config.json");
    if (!json_[key].is_number_integer()) throw UserError(where_, fmt::format("{} is not an integer", key));
    return json_[key].get<std::int64_t>();
  }
  std::int64_t integer(const char* key, std::int64_t otherwise) const {
    return json_.contains(key) ? integer(key) : otherwise;
  }
  double number(const char* key, double otherwise) const {
    if (!json_.contains(key)) return otherwise;
    if (!json_[key].is_number()) throw UserError(where_, fmt::format("{} is not a number", key));
    return json_[key].get<double>();
  }

  // A key that only one value of is built.
  void require(const char* key, const Json& wanted) const {
    if (json_.contains(key) && json_[key] != wanted)
      throw UserError(where_, fmt::format("{} is {}; only {} is supported", key, json_[key].dump(), wanted.dump()));
  }

  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  // Layers marked 1 in linear_use_lrpe_list; layer 0 where there is no list.
  std::vector<std::int64_t> lrpe_layers(std::int64_t layers) const {
    if (!has("linear_use_lrpe_list")) return {0};
    const Json& list = json_["linear_use_lrpe_list"];
    if (!list.is_array() || static_cast<std::int64_t>(list.size()) != layers)
      throw UserError(where_, fmt::format("linear_use_lrpe_list does not list {} layers", layers));
    std::vector<std::int64_t> marked;
    for (std::size_t layer = 0; layer < list.size(); ++layer) {
      if (!list[layer].is_number_integer())
        throw UserError(where_, "linear_use_lrpe_list holds something else than 0 and 1");
      if (list[layer].get<std::int64_t>() != 0) marked.push_back(static_cast<std::int64_t>(layer));
    }
    return marked;
  }

 private:
  std::string where_;
  Json json_;
};

}  // namespace

ModelConfig read_hugging_face_config(const std::filesystem::path& path) {
  const ConfigReader reader(path);
  ModelConfig config;
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
  reader.require("hidden_dim", config.hidden);
  reader.require("no_scale_embedding", false);
  reader.require("bias", false);
  reader.require("norm_type", "simplermsnorm");
  reader.require("linear_act_fun", "swish");
  reader.require("tie_word_embeddings", true);
  if (config.layers > 0) config.lrpe_layers = reader.lrpe_layers(config.layers);
  config.validate();
  return config;
}

std::string hugging_face_config(const ModelConfig& config, const std::string& torch_dtype) {
  std::vector<int> lrpe(static_cast<std::size_t>(config.layers), 0);
  for (const std::int64_t layer : config.lrpe_layers) lrpe[static_cast<std::size_t>(layer)] = 1;
  Json json = {
      {"architectures", {"TransnormerForCausalLM"}},
      {"auto_map",
       {{"AutoConfig", "configuration_transnormer.TransnormerConfig"},
        {"AutoModelForCausalLM", "modeling_transnormer.TransnormerForCausalLM"}}},
      {"model_type", "transnormer"},
      {"pad_token_id", 0},
      {"bos_token_id", 1},
      {"eos_token_id", 2},
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
  if (config.variant == "tnl3") json["gate_dim"] = config.gate_rank;
  return json.dump(2) + "\n";
}

}  // namespace fulmen
