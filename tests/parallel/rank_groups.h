// Runs a test's body on the first 1, 2, ... ranks of the world, each time on a communicator of just those.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "tests/mpi_main.h"

namespace fulmen {

inline std::vector<int> first_ranks(int count) {
  std::vector<int> ranks(static_cast<std::size_t>(count));
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

// f(communicator) on the first `count` ranks of `world`; the others go on at once.
template <class F>
void on_first_ranks(Communicator& world, int count, F&& f) {
  if (world.rank() >= count) return;
  SCOPED_TRACE("on " + std::to_string(count) + " ranks");
  const auto group = world.subgroup(first_ranks(count));
  ASSERT_EQ(group->rank(), world.rank());
  ASSERT_EQ(group->size(), count);
  f(*group);
}

template <class F>
void on_each_count_of_ranks(Communicator& world, F&& f) {
  for (int count = 1; count <= world.size(); ++count) on_first_ranks(world, count, f);
}

}  // namespace fulmen
