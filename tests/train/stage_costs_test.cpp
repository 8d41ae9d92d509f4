// What the passes of stages cost: all together what a step's operations come to, and what recomputation adds.
#include "model/stage_costs.h"

#include <gtest/gtest.h>

#include "train/metrics.h"

namespace fulmen {
namespace {

double total(const std::vector<PassCosts>& stages) {
  double sum = 0.0;
  for (const PassCosts& costs : stages) sum += costs.forward + costs.backward_input + costs.backward_weight;
  return sum;
}

// But for the embedding's rows and LRPE's thetas, which are no products' weights.
TEST(StageCosts, AddUpToTheOperationsOfTraining) {
  for (const char* name : {"transnormer-385m", "tnl3-15b"}) {
    const ModelConfig config = preset(name);
    for (const int stages : {1, 4}) {
      const auto ranges = split_stages(config.layers, stages, {});
      const double training = training_flops_per_token(config);
      EXPECT_NEAR(total(stage_costs(config, ranges, Recompute::none)) / training, 1.0, 1e-4) << name << ' ' << stages;
    }
  }
}

TEST(StageCosts, TheHeadMakesTheLastForwardLonger) {
  const ModelConfig config = preset("transnormer-385m");
  const auto costs = stage_costs(config, split_stages(config.layers, 4, {}), Recompute::none);
  EXPECT_DOUBLE_EQ(costs[3].forward - costs[2].forward, 6.0 * static_cast<double>(config.vocabulary * config.hidden));
  EXPECT_DOUBLE_EQ(costs[3].backward_weight, costs[2].backward_weight);
}

TEST(StageCosts, RecomputationMakesBackwardLongerByLessThanAForward) {
  const ModelConfig config = preset("transnormer-385m");
  const auto ranges = split_stages(config.layers, 3, {});
  const PassCosts none = stage_costs(config, ranges, Recompute::none)[1], selective = stage_costs(config, ranges, Recompute::selective)[1],
                  full = stage_costs(config, ranges, Recompute::full)[1];
  EXPECT_LT(none.backward_input, selective.backward_input);
  EXPECT_LT(selective.backward_input, full.backward_input);
  EXPECT_LT(full.backward_input, none.backward_input + none.forward);
  EXPECT_DOUBLE_EQ(full.forward, none.forward);
}

}  // namespace
}  // namespace fulmen
