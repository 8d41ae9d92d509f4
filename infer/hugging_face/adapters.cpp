// The adapters of all families, and which of them a config.json or a model asks for.
#include "framework/text.h"
#include "infer/hugging_face.h"
#include "infer/hugging_face/adapter.h"
#include "infer/hugging_face/config_reader.h"
#include "infer/hugging_face/gla.h"
#include "infer/hugging_face/gpt.h"
#include "infer/hugging_face/llama.h"
#include "infer/hugging_face/minimax.h"
#include "infer/hugging_face/retnet.h"
#include "infer/hugging_face/transnormer.h"
#include "model/stage.h"

namespace fulmen {

namespace {

// The list of adapters: a new adapter is entered here.
std::vector<HuggingFaceAdapter>& registry() {
  static std::vector<HuggingFaceAdapter> adapters = {transnormer_adapter(), llama_adapter(),  gpt_adapter(),
                                                     minimax_adapter(),     retnet_adapter(), gla_adapter()};
  return adapters;
}

[[noreturn]] void refuse(const ConfigReader& config, const std::string& what) {
  std::vector<std::string> known;
  for (const HuggingFaceAdapter& adapter : hugging_face_adapters())
    for (const HuggingFaceAdapter::Kind& kind : adapter.kinds) known.push_back(kind.model_type);
  throw UserError(config.where(), what, "models that can be imported have the model_type " + join(known, ", "));
}

struct Match {
  const HuggingFaceAdapter& adapter;
  const HuggingFaceAdapter::Kind& kind;
};

Match match(const ConfigReader& config) {
  const char* const key = config.has("model_type") ? "model_type" : "architectures";
  if (!config.has(key)) refuse(config, "has neither model_type nor architectures");
  const bool by_type = config.has("model_type");
  for (const HuggingFaceAdapter& adapter : hugging_face_adapters())
    for (const HuggingFaceAdapter::Kind& kind : adapter.kinds)
      if (by_type ? config.value(key) == kind.model_type
                  : config.value(key) == nlohmann::json::array({kind.architecture}))
        return {adapter, kind};
  refuse(config, fmt::format("{} is {}, which is not known", key, config.value(key).dump()));
}

// Keys that transformers writes for each model and that do not affect Fulmen's computation.
void pass_over_common(const ConfigReader& config) {
  config.pass_over({"architectures",
                    "model_type",
                    "auto_map",
                    "_name_or_path",
                    "transformers_version",
                    "torch_dtype",
                    "dtype",
                    "use_cache",
                    "bos_token_id",
                    "eos_token_id",
                    "pad_token_id",
                    "sep_token_id",
                    "decoder_start_token_id",
                    "tokenizer_class",
                    "output_attentions",
                    "output_hidden_states",
                    "return_dict",
                    "return_dict_in_generate",
                    "id2label",
                    "label2id",
                    "problem_type",
                    "task_specific_params",
                    "finetuning_task",
                    "chunk_size_feed_forward",
                    "torchscript"});
  config.require("is_encoder_decoder", false);
  config.require("add_cross_attention", false);
}

// Padding and the beginning of a text are as SentencePiece has them.
std::string with_tokens(const std::string& config, const TokenizerRecord& tokenizer) {
  auto json = nlohmann::ordered_json::parse(config);
  const bool pieces = tokenizer.kind == "sentencepiece";
  const auto set = [&](const char* key, std::optional<std::int64_t> id) {
    json[key] = id ? nlohmann::ordered_json(*id) : nlohmann::ordered_json();
  };
  set("pad_token_id", pieces ? std::optional<std::int64_t>(0) : std::nullopt);
  set("bos_token_id", pieces ? std::optional<std::int64_t>(1) : std::nullopt);
  set("eos_token_id", tokenizer.end_of_document);
  return json.dump(2) + "\n";
}

}  // namespace

const std::vector<HuggingFaceAdapter>& hugging_face_adapters() { return registry(); }

AdditionalAdapter::AdditionalAdapter(HuggingFaceAdapter adapter) { registry().push_back(std::move(adapter)); }

AdditionalAdapter::~AdditionalAdapter() { registry().pop_back(); }

const HuggingFaceAdapter& hugging_face_adapter(const ModelConfig& config) {
  for (const HuggingFaceAdapter& adapter : hugging_face_adapters())
    if (adapter.family == config.family()) return adapter;
  throw UserError("export", fmt::format("models of the family {} have no config.json", config.family()));
}

TensorMap hugging_face_map(const ModelConfig& config, const std::set<std::string>& held) {
  TensorMap map(declare_stage(config, whole_model(config), 1));
  hugging_face_adapter(config).map(config, held, map);
  map.check();
  return map;
}

std::shared_ptr<const ModelConfig> read_hugging_face_config(const std::filesystem::path& path) {
  const ConfigReader config(path);
  const auto [adapter, kind] = match(config);
  pass_over_common(config);
  std::shared_ptr<const ModelConfig> model = adapter.read(config, kind.model_type);
  config.refuse_others();
  try {
    model->validate();
  } catch (const UserError& error) {
    throw UserError(path.string(), fmt::format("describes no model that can be: {}", error.what()));
  }
  ModelConfig::from_identity(model->identity(), path.string());  // has the ranges of the configuration
  return model;
}

std::optional<std::int64_t> read_hugging_face_eos(const std::filesystem::path& path, std::int64_t vocabulary) {
  const ConfigReader config(path);
  if (!config.has("eos_token_id")) return std::nullopt;
  const std::int64_t id = config.integer("eos_token_id");
  if (id < 0 || id >= vocabulary)
    throw UserError(config.where(), fmt::format("eos_token_id {} is no token of a vocabulary of {}", id, vocabulary));
  return id;
}

std::string hugging_face_config(const ModelConfig& config, const std::string& torch_dtype,
                                const TokenizerRecord& tokenizer) {
  return with_tokens(hugging_face_adapter(config).write(config, torch_dtype), tokenizer);
}

}  // namespace fulmen
