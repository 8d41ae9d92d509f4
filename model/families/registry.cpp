// The list of families: a new family is entered here.
#include "framework/text.h"
#include "model/families/gla/config.h"
#include "model/families/gpt/config.h"
#include "model/families/llama/config.h"
#include "model/families/minimax/config.h"
#include "model/families/retnet/config.h"
#include "model/families/transnormer/config.h"
#include "model/model_family.h"

namespace fulmen {

namespace {

std::vector<ModelFamily>& registry() {
  static std::vector<ModelFamily> families = {transnormer_family(), llama_family(),   gpt_family(),
                                              retnet_family(),      minimax_family(), gla_family()};
  return families;
}

// "did you mean X?", or all of them.
std::string nearest_or_all(const std::string& word, const std::vector<std::string>& names) {
  const std::string nearest = nearest_name(word, names);
  return nearest.empty() ? "known: " + join(names, ", ") : fmt::format("did you mean {}?", nearest);
}

}  // namespace

const std::vector<ModelFamily>& model_families() { return registry(); }

std::vector<std::string> family_names() {
  std::vector<std::string> names;
  for (const ModelFamily& family : model_families()) names.push_back(family.name());
  return names;
}

const ModelFamily& model_family(const std::string& name) {
  for (const ModelFamily& family : model_families())
    if (family.name() == name) return family;
  throw UserError("model.family", fmt::format("'{}' is unknown", name), nearest_or_all(name, family_names()));
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const ModelFamily& family : model_families())
    for (const auto& config : family.presets) names.push_back(config->preset);
  return names;
}

std::shared_ptr<const ModelConfig> preset(const std::string& name) {
  for (const ModelFamily& family : model_families())
    for (const auto& config : family.presets)
      if (config->preset == name) return config;
  throw UserError("model.preset", fmt::format("'{}' is unknown", name), nearest_or_all(name, preset_names()));
}

AdditionalFamily::AdditionalFamily(ModelFamily family) { registry().push_back(std::move(family)); }

AdditionalFamily::~AdditionalFamily() { registry().pop_back(); }

}  // namespace fulmen
