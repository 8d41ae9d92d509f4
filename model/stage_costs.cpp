// Costs of a stage's passes.
#include "model/stage_costs.h"

#include "model/families.h"

namespace fulmen {

namespace {

void add_layer(const ModelConfig& config, std::int64_t layer, std::int64_t length, Recompute recompute,
               PassCosts& costs) {
  double last_product = 0.0;
  for (const Branch& branch : config.layer(layer)) {
    const BranchCosts own = costs_of(branch, length);
    costs.forward += own.products + own.operations;
    costs.backward_input += own.products + own.backward_operations;
    costs.backward_weight += own.products;
    if (recompute == Recompute::selective) costs.backward_input += own.again;
    if (recompute == Recompute::full) costs.backward_input += own.products + own.operations;
    last_product = own.last_product;
  }
  if (recompute == Recompute::full) costs.backward_input -= last_product;  // nobody needs a layer's output again
}

}  // namespace

std::vector<PassCosts> stage_costs(const ModelConfig& config, const std::vector<StageRange>& ranges,
                                   std::int64_t length, Recompute recompute) {
  std::vector<PassCosts> list;
  for (const StageRange& range : ranges) {
    PassCosts costs{0.0, 0.0, 0.0};
    for (std::int64_t layer = range.first_layer; layer < range.end_layer; ++layer)
      add_layer(config, layer, length, recompute, costs);
    if (range.head) costs.forward += 3.0 * 2.0 * static_cast<double>(config.vocabulary * config.hidden);
    if (range.embedding) {
      costs.forward += static_cast<double>(config.hidden);
      costs.backward_input += static_cast<double>(config.hidden);
    }
    list.push_back(costs);
  }
  return list;
}

double operations_beside_products(const ModelConfig& config, std::int64_t length) {
  double sum = 0.0;
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    for (const Branch& branch : config.layer(layer)) {
      const BranchCosts costs = costs_of(branch, length);
      sum += costs.operations + costs.backward_operations;
    }
  return sum;
}

}  // namespace fulmen
