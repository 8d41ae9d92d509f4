// The adapters of all families, and which of them a config.json or a model asks for.
#include "framework/text.h"
#include "infer/hugging_face.h"
#include "infer/hugging_face/config_reader.h"
#include "infer/hugging_face/transnormer.h"

namespace fulmen {

namespace {

[[noreturn]] void refuse(const ConfigReader& config, const std::string& what) {
  std::vector<std::string> known;
  for (const HuggingFaceAdapter& adapter : hugging_face_adapters()) known.push_back(adapter.model_type);
  throw UserError(config.where(), what, "models that can be imported have the model_type " + join(known, ", "));
}

const HuggingFaceAdapter& adapter_for(const ConfigReader& config) {
  if (config.has("model_type")) {
    for (const HuggingFaceAdapter& adapter : hugging_face_adapters())
      if (config.value("model_type") == adapter.model_type) return adapter;
    refuse(config, fmt::format("model_type is {}, which is not known", config.value("model_type").dump()));
  }
  if (!config.has("architectures")) refuse(config, "has neither model_type nor architectures");
  for (const HuggingFaceAdapter& adapter : hugging_face_adapters())
    if (config.value("architectures") == nlohmann::json::array({adapter.architecture})) return adapter;
  refuse(config, fmt::format("architectures is {}, which is not known", config.value("architectures").dump()));
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

const std::vector<HuggingFaceAdapter>& hugging_face_adapters() {
  static const std::vector<HuggingFaceAdapter> adapters = {transnormer_adapter()};
  return adapters;
}

std::shared_ptr<const ModelConfig> read_hugging_face_config(const std::filesystem::path& path) {
  const ConfigReader config(path);
  std::shared_ptr<const ModelConfig> model = adapter_for(config).read(config);
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
  for (const HuggingFaceAdapter& adapter : hugging_face_adapters())
    if (adapter.family == config.family()) return with_tokens(adapter.write(config, torch_dtype), tokenizer);
  throw UserError("export", fmt::format("models of the family {} have no config.json", config.family()));
}

}  // namespace fulmen
