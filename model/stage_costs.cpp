// Costs of a stage's passes.
#include "model/stage_costs.h"

namespace fulmen {

namespace {

void add_layer(const ModelConfig& config, std::int64_t layer, Recompute recompute, PassCosts& costs) {
  const auto hidden = static_cast<double>(config.hidden), glu = static_cast<double>(config.glu);
  const double low_rank =
      config.low_rank_gate() ? 2.0 * hidden * static_cast<double>(config.gate_rank) : 0.0;  // two factors
  const double products =
      2.0 * ((config.low_rank_gate() ? 4.0 : 5.0) * hidden * hidden + low_rank + 3.0 * hidden * glu);
  const double attention =
      4.0 * hidden * static_cast<double>(config.head_width()) * (config.has_lrpe(layer) ? 2.0 : 1.0);
  costs.forward += products + attention;
  costs.backward_input += products + 2.0 * attention;
  costs.backward_weight += products;
  if (recompute == Recompute::selective) costs.backward_input += attention + low_rank;  // the second factor's product
  if (recompute == Recompute::full) costs.backward_input += products + attention - 2.0 * hidden * glu;  // all but l3
}

}  // namespace

std::vector<PassCosts> stage_costs(const ModelConfig& config, const std::vector<StageRange>& ranges,
                                   Recompute recompute) {
  std::vector<PassCosts> list;
  for (const StageRange& range : ranges) {
    PassCosts costs{0.0, 0.0, 0.0};
    for (std::int64_t layer = range.first_layer; layer < range.end_layer; ++layer)
      add_layer(config, layer, recompute, costs);
    if (range.head) costs.forward += 3.0 * 2.0 * static_cast<double>(config.vocabulary * config.hidden);
    if (range.embedding) {
      costs.forward += static_cast<double>(config.hidden);
      costs.backward_input += static_cast<double>(config.hidden);
    }
    list.push_back(costs);
  }
  return list;
}

}  // namespace fulmen
