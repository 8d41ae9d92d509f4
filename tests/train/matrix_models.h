// The models that layouts are tested with: a model of each family or variant, small and uneven.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "model/model_config.h"

namespace fulmen {

inline constexpr std::int64_t matrix_layers = 6;

struct MatrixModel {
  std::string name;
  std::shared_ptr<const ModelConfig> config;  // in fp64 on the CPU
  int owned_items = 0;                        // that ranks along expert own; 0: none
  bool on_gpu = true;                         // whether its operations are there

  // Whether so many tensor ranks can share its layers.
  bool allows_tensor(int ranks) const;
};

// TransNormerLLM's heads are wider on a GPU.
const std::vector<MatrixModel>& matrix_models();
const MatrixModel& matrix_model(const std::string& name);

}  // namespace fulmen
