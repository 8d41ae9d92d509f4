// Costs of the passes of a stage relative to each other, counted from the model's configuration.
#pragma once

#include <vector>

#include "model/stage.h"
#include "parallel/pipeline_schedule.h"

namespace fulmen {

// Operations per token of each stage's passes over samples of `length` tokens, counted from the branches of its layers.
// Results that are made again belong to backward_input. The head's three products belong to forward, where it forms its
// gradients at once. The embedding's row belongs to both of its passes.
std::vector<PassCosts> stage_costs(const ModelConfig& config, const std::vector<StageRange>& ranges,
                                   std::int64_t length, Recompute recompute);

// Where parallel.stages is auto: the stages whose longest is as short as can be, counting all passes, head and
// embedding. Among these the most even split, the earlier stages larger. Throws UserError as split_stages does.
std::vector<StageRange> split_stages_by_cost(const ModelConfig& config, int pipeline_stages, std::int64_t length,
                                             Recompute recompute);

// Operations per token of a forward and a backward pass that are not products with weights: attention.
double operations_beside_products(const ModelConfig& config, std::int64_t length);

}  // namespace fulmen
