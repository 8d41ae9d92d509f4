// Measured passes as a schedule's costs: all that was timed is in them, once.
#include <gtest/gtest.h>

#include "train/pipeline_executor.h"

namespace fulmen {
namespace {

TEST(PassTimes, AreMeansByKind) {
  const PassCosts costs = mean_costs({4, 8.0}, {4, 12.0}, {4, 4.0}, {});
  EXPECT_DOUBLE_EQ(costs.forward, 2.0);
  EXPECT_DOUBLE_EQ(costs.backward_input, 3.0);
  EXPECT_DOUBLE_EQ(costs.backward_weight, 1.0);
}

TEST(PassTimes, WhatAlwaysRanJoinedCountsAsBackwardInput) {
  const PassCosts costs = mean_costs({4, 8.0}, {}, {}, {4, 14.0});
  EXPECT_DOUBLE_EQ(costs.backward_input, 3.5);
  EXPECT_DOUBLE_EQ(costs.backward_weight, 0.0);
}

// Three micro-batches joined at 3.5 and one apart at 3 + 1: of 14.5 seconds none is counted twice.
TEST(PassTimes, WhatRanJoinedIsDivided) {
  const PassCosts costs = mean_costs({4, 8.0}, {1, 3.0}, {1, 1.0}, {3, 10.5});
  EXPECT_DOUBLE_EQ(costs.backward_input, 3.0);
  EXPECT_DOUBLE_EQ(costs.backward_weight, 0.625);
  EXPECT_DOUBLE_EQ(4 * (costs.backward_input + costs.backward_weight), 14.5);
}

}  // namespace
}  // namespace fulmen
