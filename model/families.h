// What the layers of each model family are made of.
#pragma once

#include <memory>
#include <vector>

#include "model/model_config.h"
#include "model/sublayer.h"

namespace fulmen {

// Declarations of layers [first, end), in the order of their use.
std::vector<ParameterDeclaration> declare_layers(const ModelConfig& config, std::int64_t first, std::int64_t end);
// The residual branches of one layer, in order.
std::vector<std::unique_ptr<Sublayer>> make_layer(const ModelConfig& config, std::int64_t layer,
                                                  const ModelContext& context);

}  // namespace fulmen
