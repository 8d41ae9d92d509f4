// Decay slopes against the values that the released models use (printed for 8, 16, 20, 32 and 40 heads).
#include "model/mixers/decay_slopes.h"

#include <gtest/gtest.h>

#include <cmath>

namespace fulmen {
namespace {

// The first layer of many has the factor 1.00001.
std::vector<double> base_slopes(std::int64_t heads) {
  std::vector<double> slopes = decay_slopes(heads, 0, 24);
  for (double& slope : slopes) slope /= 1.00001;
  return slopes;
}

void expect_slopes(const std::vector<double>& actual, std::size_t first, const std::vector<double>& expected,
                   double tolerance) {
  ASSERT_GE(actual.size(), first + expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(actual[first + i], expected[i], tolerance) << "head " << first + i;
}

TEST(DecaySlopes, PowersOfTwoFollowTheLadder) {
  expect_slopes(base_slopes(8), 0, {0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625}, 1e-15);
  expect_slopes(base_slopes(16), 0, {0.7071, 0.5}, 5e-5);
  expect_slopes(base_slopes(16), 15, {0.00390625}, 1e-15);
  expect_slopes(base_slopes(32), 0, {0.8409, 0.7071}, 5e-5);
  expect_slopes(base_slopes(32), 31, {0.00390625}, 1e-15);
}

TEST(DecaySlopes, OtherCountsAreContinuedWithEverySecondOfTheNextLadder) {
  const std::vector<double> of_20 = base_slopes(20), of_40 = base_slopes(40);
  ASSERT_EQ(of_20.size(), 20u);
  ASSERT_EQ(of_40.size(), 40u);
  expect_slopes(of_20, 0, base_slopes(16), 1e-15);
  expect_slopes(of_20, 16, {0.840896, 0.594604, 0.420448, 0.297302}, 5e-7);
  expect_slopes(of_40, 0, base_slopes(32), 1e-15);
  expect_slopes(of_40, 32, {0.917004, 0.771105, 0.648420, 0.545254, 0.458502, 0.385553, 0.324210, 0.272627}, 5e-7);
}

TEST(DecaySlopes, FallWithTheLayer) {
  const std::int64_t layers = 5;
  const double factors[] = {1.00001, 0.75001, 0.50001, 0.25001, 0.00001};
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    const std::vector<double> slopes = decay_slopes(8, layer, layers);
    for (std::size_t h = 0; h < 8; ++h)
      EXPECT_NEAR(slopes[h], std::exp2(-static_cast<double>(h + 1)) * factors[layer], 1e-15) << "layer " << layer;
  }
}

TEST(DecaySlopes, OneLayerAndOneHead) {
  expect_slopes(decay_slopes(8, 0, 1), 0, {0.5 * 1.00001}, 1e-15);
  const std::vector<double> one = decay_slopes(1, 0, 2);
  ASSERT_EQ(one.size(), 1u);
  EXPECT_NEAR(one[0], std::exp2(-8.0) * 1.00001, 1e-15);
}

}  // namespace
}  // namespace fulmen
