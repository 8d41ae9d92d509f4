// What the passes of a stage cost relative to each other, counted from the model's configuration.
#pragma once

#include <vector>

#include "model/stage.h"
#include "parallel/pipeline_schedule.h"

namespace fulmen {

// Operations per token of each stage's passes: two for each weight of a product, and those of the attention's state
// (update and read-out, twice as many backward, LRPE layers twice). What is made again belongs to backward_input; the
// head's three products to forward, where it forms its gradients at once; the embedding's row to both of its passes.
std::vector<PassCosts> stage_costs(const ModelConfig& config, const std::vector<StageRange>& ranges,
                                   Recompute recompute);

}  // namespace fulmen
