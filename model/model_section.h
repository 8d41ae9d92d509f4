// The section `model` of a configuration, or the same keys in a checkpoint's manifest: which family it is of, and the
// keys of that family.
#pragma once

#include <memory>
#include <string>

#include "framework/configuration.h"
#include "model/model_config.h"

namespace fulmen {

class ModelSection {
 public:
  // Binds the keys of a family to a configuration that begins as the preset's, or as the family's defaults. Family and
  // preset must be known before anything is read, "" where they are not given. The family is then the preset's, or the
  // first of model_families(). Keys that only other families have are refused with their names. Throws UserError for an
  // unknown family or preset, or a preset of another family.
  ModelSection(Schema& schema, const std::string& family, const std::string& preset);
  ModelSection(const ModelSection&) = delete;
  ModelSection& operator=(const ModelSection&) = delete;

  const ModelConfig& config() const { return *config_; }
  // A copy of what was read. Throws UserError where it does not fit together.
  std::shared_ptr<const ModelConfig> validated() const;

 private:
  std::unique_ptr<ModelConfig> config_;
  std::string family_;
};

// The keys of `model`, for the reference: a table of the common keys, then a table for each family.
std::string model_reference();

}  // namespace fulmen
