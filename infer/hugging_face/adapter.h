// How the models of a family are laid out in a Hugging Face folder. Each family has an adapter in a file of its own;
// adapters.cpp lists them.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "infer/hugging_face/tensor_map.h"
#include "model/model_config.h"

namespace fulmen {

class ConfigReader;

struct HuggingFaceAdapter {
  // The model's name in a config.json. A family may have several.
  struct Kind {
    std::string model_type;
    std::string architecture;  // the modelling class; it decides where there is no model_type
  };

  std::string family;
  std::vector<Kind> kinds;
  // The model of a config.json. `model_type` is the kind's. Throws UserError naming the key: missing, malformed, or
  // asking for something that the family has not. Keys that are neither read nor passed over are refused afterwards.
  std::shared_ptr<const ModelConfig> (*read)(const ConfigReader& config, const std::string& model_type);
  // The text of a config.json, with the architecture; without the tokeniser's tokens. Throws UserError for a model that
  // cannot be said in it.
  std::string (*write)(const ModelConfig& config, const std::string& torch_dtype);
  // Enters the tensors. `held`: the names in the folder, for families whose folders come in several forms; empty where
  // the folder is to be written.
  void (*map)(const ModelConfig& config, const std::set<std::string>& held, TensorMap& map);
};

const std::vector<HuggingFaceAdapter>& hugging_face_adapters();
// Throws UserError for a family without an adapter.
const HuggingFaceAdapter& hugging_face_adapter(const ModelConfig& config);
// The checked map of a model.
TensorMap hugging_face_map(const ModelConfig& config, const std::set<std::string>& held);

// One more adapter while this object lives, for tests. Not while others look.
class AdditionalAdapter {
 public:
  explicit AdditionalAdapter(HuggingFaceAdapter adapter);
  ~AdditionalAdapter();
  AdditionalAdapter(const AdditionalAdapter&) = delete;
  AdditionalAdapter& operator=(const AdditionalAdapter&) = delete;
};

}  // namespace fulmen
