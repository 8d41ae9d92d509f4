// The section `model`.
#include "model/model_section.h"

#include <set>

#include "framework/text.h"
#include "model/model_family.h"

namespace fulmen {

namespace {

std::vector<Choice> choices_of(const std::vector<std::string>& names) {
  std::vector<Choice> choices;
  for (const std::string& name : names) choices.push_back({name});
  return choices;
}

// The values that the keys begin with.
std::unique_ptr<ModelConfig> beginning(const std::string& family, const std::string& preset_name) {
  if (preset_name.empty()) return (family.empty() ? model_families().front() : model_family(family)).defaults->clone();
  const std::shared_ptr<const ModelConfig> config = preset(preset_name);
  if (!family.empty() && model_family(family).name() != config->family())
    throw UserError("model.family",
                    fmt::format("is {}, and the preset {} is of {}", family, preset_name, config->family()),
                    "leave one of the two out");
  return config->clone();
}

void bind_common(Schema& schema, ModelConfig& config, std::string& family) {
  std::vector<std::string> presets = preset_names();
  presets.insert(presets.begin(), "");  // none
  schema.add("model.preset", config.preset, choices_of(presets),
             "A published model; the other keys of this section then change single sizes.");
  schema.add("model.family", family, choices_of(family_names()),
             "The architecture; it decides which keys this section has. A preset implies its own.");
  schema.add("model.layers", config.layers, {0, 100000}, "Layers.");
  schema.add("model.hidden", config.hidden, {0, 1 << 20}, "Width of the hidden state.");
  schema.add("model.vocabulary", config.vocabulary, {0, 1 << 30},
             "Token ids that the model knows; at least the corpus's.");
  schema.add("model.initializer_std", config.initializer_std, {0.0, 10.0},
             "Standard deviation of freshly initialised matrices.");
  schema.add("model.pad_id", config.pad_id, {0, 1 << 30}, "A token id whose embedding starts as zero; auto: none.");
}

// Keys that other families have and this family has not.
void refuse_others(Schema& schema, const std::string& family) {
  std::set<std::string> own;
  for (const Schema::Key& key : schema.keys()) own.insert(key.name);
  std::map<std::string, std::vector<std::string>> owners;
  for (const ModelFamily& other : model_families()) {
    const std::unique_ptr<ModelConfig> config = other.defaults->clone();
    Schema theirs;
    config->bind(theirs);
    for (const Schema::Key& key : theirs.keys())
      if (!own.contains(key.name)) owners[key.name].push_back(other.name());
  }
  for (const auto& [key, names] : owners)
    schema.refuse(key, fmt::format("belongs to the famil{} {}; this model is {}", names.size() == 1 ? "y" : "ies",
                                   join(names, ", "), family));
}

}  // namespace

ModelSection::ModelSection(Schema& schema, const std::string& family, const std::string& preset)
    : config_(beginning(family, preset)), family_(config_->family()) {
  bind_common(schema, *config_, family_);
  config_->bind(schema);
  refuse_others(schema, family_);
}

std::shared_ptr<const ModelConfig> ModelSection::validated() const {
  config_->validate();
  return config_->clone();
}

std::string model_reference() {
  std::string text = "## `model`\n\nKeys of every family:\n\n";
  for (const ModelFamily& family : model_families()) {
    const std::unique_ptr<ModelConfig> config = family.defaults->clone();
    std::string name = family.name();
    if (&family == &model_families().front()) {
      Schema common;
      bind_common(common, *config, name);
      text += common.table();
    }
    Schema own;
    config->bind(own);
    text += fmt::format("\n### The family `{}`\n\n{}", family.name(), own.table());
  }
  return text;
}

}  // namespace fulmen
