// The matrix of layouts holds what it promises, counted over all layouts one by one.
#include "tests/train/layout_matrix.h"

#include <algorithm>
#include <set>
#include <unordered_set>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

// "zero 2 with recompute full", for those that the matrix lacks.
std::string spelled(const CombinationSpace& space, const Combination& c, std::size_t a, std::size_t b) {
  const auto value = [&](std::size_t f) {
    return space.features()[f].name + " " + space.features()[f].values[static_cast<std::size_t>(c[f])];
  };
  return value(a) + " with " + value(b);
}

TEST(LayoutMatrix, EveryPairThatIsPossibleMeets) {
  const CombinationSpace& space = layout_space();
  std::unordered_set<std::uint64_t> met;
  for (const Combination& combination : layout_combinations())
    for (const std::uint64_t pair : tuples_of(space, combination, 2)) met.insert(pair);
  std::set<std::string> missing;
  std::unordered_set<std::uint64_t> possible;
  std::int64_t layouts = 0;
  const std::size_t features = space.features().size();
  space.for_each([&](const Combination& combination) {
    ++layouts;
    const std::vector<std::uint64_t> pairs = tuples_of(space, combination, 2);
    std::size_t place = 0;
    for (std::size_t a = 0; a < features; ++a)
      for (std::size_t b = a + 1; b < features; ++b, ++place) {
        if (possible.insert(pairs[place]).second && !met.contains(pairs[place]))
          missing.insert(spelled(space, combination, a, b));
      }
  });
  EXPECT_TRUE(missing.empty()) << missing.size() << " pairs, such as " << *missing.begin();
  EXPECT_EQ(met.size(), possible.size());
  std::printf("%zu of %zu possible pairs, of %lld layouts\n", met.size(), possible.size(),
              static_cast<long long>(layouts));
}

TEST(LayoutMatrix, HoldsWhatItPromises) {
  const std::vector<Combination> combinations = layout_combinations();
  EXPECT_GE(combinations.size(), 200u);
  EXPECT_EQ(std::set<Combination>(combinations.begin(), combinations.end()).size(), combinations.size())
      << "distinct layouts";
  for (const Combination& combination : combinations) EXPECT_EQ(layout_space().forbidden_by(combination), "");
  const std::vector<LayoutCase> cases = layout_matrix();
  const auto count = [&](auto&& condition) { return std::ranges::count_if(cases, condition); };
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.ranks() == 8; }), 50);
  EXPECT_EQ(count([](const LayoutCase& c) { return c.shape.ranks() > 8; }), 0);
  EXPECT_GE(count([](const LayoutCase& c) { return c.micro_batches < c.shape.pipeline; }), 5);
  EXPECT_GE(count([](const LayoutCase& c) { return c.micro_batches == c.shape.pipeline && c.shape.pipeline > 1; }), 5);
  EXPECT_GE(count([](const LayoutCase& c) { return c.micro_batches > c.shape.pipeline && c.shape.pipeline > 1; }), 5);
  // More than pairs: every three axes together.
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.data > 1 && c.shape.tensor > 1 && c.shape.pipeline > 1; }),
            5);
  EXPECT_GE(
      count([](const LayoutCase& c) { return c.shape.sequence > 1 && c.shape.tensor > 1 && c.shape.pipeline > 1; }), 5);
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.sequence > 1 && c.shape.data > 1 && c.shape.pipeline > 1; }),
            5);
  EXPECT_GE(count([](const LayoutCase& c) { return c.shape.sequence > 1 && c.shape.data > 1 && c.shape.tensor > 1; }),
            5);
}

TEST(LayoutMatrix, SharesOfTheWholeAreDisjointAndComplete) {
  std::int64_t all = 0;
  layout_space().for_each([&](const Combination&) { ++all; });
  constexpr std::int64_t shares = 20000;
  std::set<std::string> described;
  std::size_t count = 0;
  for (const std::int64_t share : {std::int64_t{0}, std::int64_t{1}, shares - 1}) {
    const std::vector<LayoutCase> cases = layout_shard(share, shares);
    EXPECT_EQ(static_cast<std::int64_t>(cases.size()), (all - share + shares - 1) / shares);
    count += cases.size();
    for (const LayoutCase& layout : cases) described.insert(layout.describe());
  }
  EXPECT_EQ(described.size(), count);
}

}  // namespace
}  // namespace fulmen
