// What the layers of each model family are made of.
#pragma once

#include <vector>

#include "model/branch.h"
#include "model/model_config.h"

namespace fulmen {

// The residual branches of one layer, in order.
std::vector<Branch> layer_branches(const ModelConfig& config, std::int64_t layer);
// Whether some layer adds to the loss.
bool has_layer_losses(const ModelConfig& config);
// Declarations of layers [first, end), in the order of their use.
std::vector<ParameterDeclaration> declare_layers(const ModelConfig& config, std::int64_t first, std::int64_t end);

}  // namespace fulmen
