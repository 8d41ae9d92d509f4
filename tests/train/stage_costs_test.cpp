// Costs of the passes of stages: their sum is a step's operations, and recomputation adds its part.
#include "model/stage_costs.h"

#include <gtest/gtest.h>

#include "model/families/transnormer/config.h"
#include "parallel/schedule_checker.h"
#include "train/metrics.h"

namespace fulmen {
namespace {

constexpr std::int64_t length = 2048;

double total(const std::vector<PassCosts>& stages) {
  double sum = 0.0;
  for (const PassCosts& costs : stages) sum += costs.forward + costs.backward_input + costs.backward_weight;
  return sum;
}

// But for the embedding's rows and LRPE's thetas, which are no products' weights.
TEST(StageCosts, AddUpToTheOperationsOfTraining) {
  for (const char* name : {"transnormer-385m", "tnl3-15b"}) {
    const TransnormerConfig config = as<TransnormerConfig>(*preset(name));
    for (const int stages : {1, 4}) {
      const auto ranges = split_stages(config.layers, stages, {});
      const double training = training_flops_per_token(config, length);
      EXPECT_NEAR(total(stage_costs(config, ranges, length, Recompute::none)) / training, 1.0, 1e-4)
          << name << ' ' << stages;
    }
  }
}

TEST(StageCosts, TheHeadMakesTheLastForwardLonger) {
  const TransnormerConfig config = as<TransnormerConfig>(*preset("transnormer-385m"));
  const auto costs = stage_costs(config, split_stages(config.layers, 4, {}), length, Recompute::none);
  EXPECT_DOUBLE_EQ(costs[3].forward - costs[2].forward, 6.0 * static_cast<double>(config.vocabulary * config.hidden));
  EXPECT_DOUBLE_EQ(costs[3].backward_weight, costs[2].backward_weight);
}

TEST(StageCosts, RecomputationMakesBackwardLongerByLessThanAForward) {
  const TransnormerConfig config = as<TransnormerConfig>(*preset("transnormer-385m"));
  const auto ranges = split_stages(config.layers, 3, {});
  const PassCosts none = stage_costs(config, ranges, length, Recompute::none)[1],
                  selective = stage_costs(config, ranges, length, Recompute::selective)[1],
                  full = stage_costs(config, ranges, length, Recompute::full)[1];
  EXPECT_LT(none.backward_input, selective.backward_input);
  EXPECT_LT(selective.backward_input, full.backward_input);
  EXPECT_LT(full.backward_input, none.backward_input + none.forward);
  EXPECT_DOUBLE_EQ(full.forward, none.forward);
}

// transnormer-1b on two ranks, 8 micro-batches: the head makes the last stage's forward pass twice as long as its
// others.
TEST(StageCosts, ZeroBubbleIsTheShortestScheduleOfStagesWithAHead) {
  const TransnormerConfig config = as<TransnormerConfig>(*preset("transnormer-1b"));
  const auto bubble = [&](ScheduleKind kind, const std::vector<std::int64_t>& stages) {
    const auto chunks = static_cast<int>(stages.size()) / 2;
    const ScheduleCosts costs{
        stage_costs(config, split_stages(config.layers, 2 * chunks, stages), length, Recompute::none), 0.0, true};
    return check_schedule(make_schedule(kind, 2, 8, chunks, costs), 8, chunks, costs).bubble;
  };
  const double plain = bubble(ScheduleKind::one_forward_one_backward, {9, 7});
  EXPECT_LT(bubble(ScheduleKind::zero_bubble, {9, 7}), 0.75 * plain);
  EXPECT_LT(bubble(ScheduleKind::zero_bubble, {5, 4, 4, 3}), 0.7 * bubble(ScheduleKind::interleaved, {5, 4, 4, 3}));
  EXPECT_LT(bubble(ScheduleKind::zero_bubble, {4, 5, 5, 2}), 0.036);
}

}  // namespace
}  // namespace fulmen
