// Orders against the library's own stable sort.
#include "framework/stable_order.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "framework/error.h"

namespace fulmen {
namespace {

void check(const std::vector<std::int32_t>& keys) {
  std::vector<std::int32_t> expected(keys.size());
  std::iota(expected.begin(), expected.end(), 0);
  std::ranges::stable_sort(expected, {}, [&](std::int32_t place) { return keys[static_cast<std::size_t>(place)]; });
  const StableOrder order = stable_order(keys);
  EXPECT_EQ(order.places, expected);
  std::map<std::int32_t, std::int64_t> counts;
  for (const std::int32_t key : keys) ++counts[key];
  std::int64_t most = 0;
  for (const auto& [key, count] : counts) most = std::max(most, count);
  EXPECT_EQ(order.longest_run, most);
  EXPECT_EQ(order.distinct, static_cast<std::int64_t>(std::set<std::int32_t>(keys.begin(), keys.end()).size()));
}

TEST(StableOrder, EqualsTheLibrarys) {
  constexpr std::int32_t most = std::numeric_limits<std::int32_t>::max();
  check({});
  check({7});
  check({3, 3, 3, 3});
  check({most, 0, most, 0, 1});
  std::mt19937 generator(std::random_device{}());
  for (const std::int32_t largest : {1, 10, 1000, most}) {
    for (const std::size_t count : {2, 100, 5000}) {
      std::vector<std::int32_t> keys(count);
      for (auto& key : keys) key = std::uniform_int_distribution<std::int32_t>(0, largest)(generator);
      check(keys);
    }
  }
}

TEST(StableOrder, RefusesNegativeKeys) { EXPECT_THROW(stable_order(std::vector<std::int32_t>{1, -1}), InternalError); }

}  // namespace
}  // namespace fulmen
