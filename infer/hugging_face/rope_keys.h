// The keys of rotary positions in a config.json: rope_theta and rope_scaling as transformers 4 has them,
// rope_parameters as transformers 5.
#pragma once

#include <string>

#include "infer/hugging_face/config_reader.h"
#include "kernels/rotation.h"

namespace fulmen {

struct RopeKeys {
  double theta = 10000.0;
  std::string type = "default";   // or llama3
  FrequencyScaling scaling = {};  // of llama3
};

// Throws UserError naming the key for types other than default and llama3, for partial rotation, and where the two
// forms disagree. Keys that are not there leave `defaults`.
RopeKeys read_rope(const ConfigReader& config, const RopeKeys& defaults);
// Enters both forms.
void write_rope(const RopeKeys& rope, nlohmann::ordered_json& json);

}  // namespace fulmen
