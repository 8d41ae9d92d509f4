// The generator of covering arrays, on spaces small enough to know all about them.
#include "tests/train/covering_array.h"

#include <algorithm>
#include <set>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

CombinationSpace cube(int features, int values, std::vector<Constraint> constraints = {}) {
  std::vector<Feature> list;
  for (int f = 0; f < features; ++f) {
    list.push_back({"feature " + std::to_string(f), {}});
    for (int v = 0; v < values; ++v) list.back().values.push_back(std::to_string(v));
  }
  return {list, std::move(constraints)};
}

std::set<std::uint64_t> tuples_in(const CombinationSpace& space, const std::vector<Combination>& combinations,
                                  int size) {
  std::set<std::uint64_t> tuples;
  for (const Combination& combination : combinations)
    for (const std::uint64_t tuple : tuples_of(space, combination, size)) tuples.insert(tuple);
  return tuples;
}

std::vector<Combination> everything(const CombinationSpace& space) {
  std::vector<Combination> all;
  space.for_each([&](const Combination& combination) { all.push_back(combination); });
  return all;
}

TEST(CoveringArray, CountsTheWholeProduct) {
  EXPECT_EQ(everything(cube(4, 3)).size(), 81u);
  const CombinationSpace space =
      cube(3, 2, {{"not all alike", {0, 1, 2}, [](const Combination& c) { return c[0] != c[1] || c[1] != c[2]; }}});
  EXPECT_EQ(everything(space).size(), 6u);
  EXPECT_EQ(space.forbidden_by({1, 1, 1}), "not all alike");
  EXPECT_EQ(space.forbidden_by({1, 0, 1}), "");
}

TEST(CoveringArray, TuplesAreToldApart) {
  const CombinationSpace space = cube(4, 3);
  EXPECT_EQ(tuples_of(space, {0, 0, 0, 0}, 2).size(), 6u);
  EXPECT_EQ(tuples_in(space, everything(space), 2).size(), 6u * 9u);
  EXPECT_EQ(tuples_in(space, everything(space), 3).size(), 4u * 27u);
}

TEST(CoveringArray, EveryPairMeetsInFewCombinations) {
  const CombinationSpace space = cube(4, 3);  // 9 are possible
  const std::vector<Combination> few = cover_pairs(space, 0);
  EXPECT_EQ(tuples_in(space, few, 2).size(), 54u);
  EXPECT_LE(few.size(), 15u);
  const CombinationSpace large = cube(12, 4);  // of 16.8 million
  const std::vector<Combination> some = cover_pairs(large, 0);
  EXPECT_EQ(tuples_in(large, some, 2).size(), 66u * 16u);
  EXPECT_LE(some.size(), 40u);
}

TEST(CoveringArray, ConstraintsHoldAndForbidPairs) {
  // 0 and 1 differ; 2 follows from both: pairs that no constraint names by itself are impossible, too.
  const CombinationSpace space =
      cube(5, 3,
           {{"0 and 1 differ", {0, 1}, [](const Combination& c) { return c[0] != c[1]; }},
            {"2 is their sum", {0, 1, 2}, [](const Combination& c) { return c[2] == (c[0] + c[1]) % 3; }}});
  const std::vector<Combination> chosen = cover_pairs(space, 0);
  for (const Combination& combination : chosen) EXPECT_EQ(space.forbidden_by(combination), "");
  EXPECT_EQ(tuples_in(space, chosen, 2), tuples_in(space, everything(space), 2));
  EXPECT_LT(chosen.size(), 20u);
}

TEST(CoveringArray, FillsUpWithTriplesAndRepeatsNothing) {
  const CombinationSpace space = cube(4, 3);
  const std::vector<Combination> chosen = cover_pairs(space, 40);
  EXPECT_EQ(chosen.size(), 40u);
  EXPECT_EQ(std::set<Combination>(chosen.begin(), chosen.end()).size(), 40u);
  EXPECT_GE(tuples_in(space, chosen, 3).size(), 100u) << "of 108";
  EXPECT_EQ(cover_pairs(space, 40), chosen) << "the same each time";
  EXPECT_EQ(cover_pairs(space, 40, {{2, 2, 1, 0}, {2, 2, 1, 0}})[0], (Combination{2, 2, 1, 0}));
  EXPECT_EQ(cover_pairs(cube(2, 2), 100).size(), 4u) << "no more than there are";
}

}  // namespace
}  // namespace fulmen
