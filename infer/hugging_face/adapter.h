// How the models of a family are described in a config.json: one adapter a family.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace fulmen {

class ConfigReader;

struct HuggingFaceAdapter {
  std::string family;
  std::string model_type;    // as config.json has it
  std::string architecture;  // likewise, where there is no model_type
  // The model. Throws UserError naming the key: missing, malformed, or asking for something that the family has not.
  std::shared_ptr<const ModelConfig> (*read)(const ConfigReader& config);
  // The text of a config.json. Throws UserError for a model that cannot be said in it.
  std::string (*write)(const ModelConfig& config, const std::string& torch_dtype);
};

const std::vector<HuggingFaceAdapter>& hugging_face_adapters();

}  // namespace fulmen
