// Learning-rate schedules at their corners.
#include "train/learning_rate.h"

#include <limits>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

LearningRateConfig schedule(const char* kind, std::int64_t warmup, double minimum) {
  LearningRateConfig config;
  config.kind = kind;
  config.warmup_steps = warmup;
  config.minimum = minimum;
  return config;
}

TEST(LearningRate, WarmsUpLinearlyThenEndsAtTheMinimum) {
  for (const char* kind : {"linear", "cosine", "wsd"}) {
    const LearningRateConfig config = schedule(kind, 4, 0.1);
    for (std::int64_t t = 0; t < 4; ++t)
      EXPECT_DOUBLE_EQ(learning_rate(config, 1.0, t, 20), 0.25 * static_cast<double>(t + 1)) << kind;
    EXPECT_NEAR(learning_rate(config, 1.0, 19, 20), 0.1, 1e-15) << kind;
  }
}

TEST(LearningRate, NeverRisesAfterTheWarmUp) {
  for (const char* kind : {"constant", "linear", "cosine", "wsd"})
    for (std::int64_t t = 3; t + 1 < 50; ++t)
      EXPECT_GE(learning_rate(schedule(kind, 3, 0.01), 1.0, t, 50),
                learning_rate(schedule(kind, 3, 0.01), 1.0, t + 1, 50))
          << kind << t;
}

TEST(LearningRate, ConstantStaysAtThePeak) {
  EXPECT_DOUBLE_EQ(learning_rate(schedule("constant", 0, 0.1), 2.0, 0, 10), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate(schedule("constant", 0, 0.1), 2.0, 9, 10), 2.0);
}

TEST(LearningRate, LinearIsHalfWayInTheMiddle) {
  EXPECT_DOUBLE_EQ(learning_rate(schedule("linear", 0, 0.0), 1.0, 4, 10), 0.5);
}

TEST(LearningRate, WsdIsStableUntilItsDecay) {
  LearningRateConfig config = schedule("wsd", 2, 0.0);
  config.decay_steps = 5;
  EXPECT_DOUBLE_EQ(learning_rate(config, 1.0, 14, 20), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(config, 1.0, 15, 20), 0.8);
  EXPECT_NEAR(learning_rate(config, 1.0, 19, 20), 0.0, 1e-15);
}

TEST(LearningRate, WarmUpMayFillTheWholeRun) {
  EXPECT_DOUBLE_EQ(learning_rate(schedule("cosine", 10, 0.0), 1.0, 9, 10), 1.0);
}

TEST(TrainConfig, TokensComeToWholeSteps) {
  TrainConfig config;
  config.global_batch = 4;
  config.tokens = 1000;
  EXPECT_EQ(config.total_steps(100), 3);
  config.steps = 7;
  EXPECT_EQ(config.total_steps(100), 7);
  config.steps = 0;
  config.tokens = std::numeric_limits<std::int64_t>::max();
  EXPECT_GT(config.total_steps(100), std::int64_t{1} << 40);
}

}  // namespace
}  // namespace fulmen
