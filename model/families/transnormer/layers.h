// What the layers of TransNormerLLM are made of.
#pragma once

#include <vector>

#include "model/branch.h"
#include "model/model_config.h"

namespace fulmen {

// The residual branches of a layer: the token mixer, the channel mixer.
std::vector<Branch> transnormer_layer(const ModelConfig& config, std::int64_t layer);

}  // namespace fulmen
