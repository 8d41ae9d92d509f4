// Quantities that follow from the layers that a model's family says it has.
#pragma once

#include <vector>

#include "model/branch.h"
#include "model/model_config.h"

namespace fulmen {

// Whether some layer adds to the loss.
bool has_layer_losses(const ModelConfig& config);
// Declarations of layers [first, end), in the order of their use.
std::vector<ParameterDeclaration> declare_layers(const ModelConfig& config, std::int64_t first, std::int64_t end);

}  // namespace fulmen
