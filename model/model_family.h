// The families of models that the program knows, and their published sizes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace fulmen {

struct ModelFamily {
  std::shared_ptr<const ModelConfig> defaults;              // of its keys; sizes are not given
  std::vector<std::shared_ptr<const ModelConfig>> presets;  // each with its name

  std::string name() const { return defaults->family(); }
};

// The first family serves configurations that name none.
const std::vector<ModelFamily>& model_families();
std::vector<std::string> family_names();
// Throws UserError naming model.family and the nearest family.
const ModelFamily& model_family(const std::string& name);

// The published configurations (and, marked in configs/, shapes from memory) of all families, by name.
std::vector<std::string> preset_names();
// Throws UserError naming model.preset and the nearest preset.
std::shared_ptr<const ModelConfig> preset(const std::string& name);

// One more family while this object lives, for tests. Not while others look.
class AdditionalFamily {
 public:
  explicit AdditionalFamily(ModelFamily family);
  ~AdditionalFamily();
  AdditionalFamily(const AdditionalFamily&) = delete;
  AdditionalFamily& operator=(const AdditionalFamily&) = delete;
};

}  // namespace fulmen
