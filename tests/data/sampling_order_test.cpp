// The order of samples is a permutation in every epoch, another for every seed and epoch, and looks random.
#include "data/sampling_order.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "framework/error.h"
#include "tests/data/corpus_fixture.h"

namespace fulmen {
namespace {

using testing_support::generator;
using testing_support::random_in;

std::vector<std::int64_t> epoch_of(std::int64_t samples, std::uint64_t seed, bool shuffle, std::int64_t epoch) {
  const SamplingOrder order(samples, seed, shuffle);
  std::vector<std::int64_t> places(static_cast<std::size_t>(samples));
  for (std::int64_t i = 0; i < samples; ++i) places[static_cast<std::size_t>(i)] = order.at(epoch * samples + i);
  return places;
}

bool is_permutation_of_all(std::vector<std::int64_t> places) {
  std::sort(places.begin(), places.end());
  for (std::size_t i = 0; i < places.size(); ++i) {
    if (places[i] != static_cast<std::int64_t>(i)) return false;
  }
  return true;
}

TEST(SamplingOrder, IsABijection) {
  for (std::int64_t samples = 1; samples <= 300; ++samples) {
    for (const std::int64_t epoch : {0, 1, 77}) {
      ASSERT_TRUE(is_permutation_of_all(epoch_of(samples, generator()(), true, epoch))) << samples << " in " << epoch;
    }
  }
  for (const std::int64_t samples : {65535LL, 65536LL, 65537LL, 200'003LL}) {
    ASSERT_TRUE(is_permutation_of_all(epoch_of(samples, generator()(), true, 3))) << samples;
  }
}

TEST(SamplingOrder, WithoutShufflingInOrder) {
  const SamplingOrder order(7, 1, false);
  for (std::int64_t i = 0; i < 30; ++i) EXPECT_EQ(order.at(i), i % 7);
}

TEST(SamplingOrder, DiffersBetweenSeedsAndEpochs) {
  const std::int64_t samples = random_in(500, 2000);
  const std::uint64_t seed = generator()();
  const auto first = epoch_of(samples, seed, true, 0);
  EXPECT_EQ(first, epoch_of(samples, seed, true, 0));
  // Two random permutations agree at one place on average.
  const auto agreements = [&](const std::vector<std::int64_t>& other) {
    return std::inner_product(first.begin(), first.end(), other.begin(), 0, std::plus<>(), std::equal_to<>());
  };
  EXPECT_LT(agreements(epoch_of(samples, seed, true, 1)), 20);
  EXPECT_LT(agreements(epoch_of(samples, seed + 1, true, 0)), 20);
  EXPECT_LT(agreements(epoch_of(samples, seed, false, 0)), 20);
}

TEST(SamplingOrder, LooksRandom) {
  const std::int64_t samples = 100'000;
  const auto order = epoch_of(samples, generator()(), true, 0);
  // Correlation of place and sample, and of neighbours: of order 1 / sqrt(samples).
  const double mean = (samples - 1) / 2.0, variance = (static_cast<double>(samples) * samples - 1) / 12.0;
  double with_place = 0.0, with_neighbour = 0.0;
  for (std::int64_t i = 0; i + 1 < samples; ++i) {
    const double here = static_cast<double>(order[static_cast<std::size_t>(i)]) - mean;
    with_place += here * (static_cast<double>(i) - mean);
    with_neighbour += here * (static_cast<double>(order[static_cast<std::size_t>(i + 1)]) - mean);
  }
  EXPECT_LT(std::abs(with_place / (samples * variance)), 0.02);
  EXPECT_LT(std::abs(with_neighbour / (samples * variance)), 0.02);
}

// With few samples every permutation's first element must be about equally likely.
TEST(SamplingOrder, SmallOrdersAreUniformToo) {
  const std::uint64_t base = generator()();
  std::vector<int> first(5);
  for (std::uint64_t s = 0; s < 5000; ++s) ++first[static_cast<std::size_t>(SamplingOrder(5, base + s, true).at(0))];
  for (const int count : first) EXPECT_NEAR(count, 1000, 200);
}

TEST(SamplingOrder, LargestSizes) {
  const std::int64_t samples = (std::int64_t{1} << 62) - 3;
  const SamplingOrder order(samples, 9, true);
  for (int i = 0; i < 1000; ++i) {
    const std::int64_t at = order.at(random_in(0, samples - 1));
    ASSERT_GE(at, 0);
    ASSERT_LT(at, samples);
  }
  EXPECT_THROW(SamplingOrder(0, 1, true), InternalError);
  EXPECT_THROW(order.at(-1), InternalError);
}

}  // namespace
}  // namespace fulmen
