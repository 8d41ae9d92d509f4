// Whether the place of checkpoints has room, before there are any.
#include "checkpoint/place.h"

#include <gtest/gtest.h>

#include <fstream>

#include "framework/error.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

bool fits(const CheckpointDemand& demand, std::int64_t existing, double free_bytes) {
  return room_problem(demand, existing, free_bytes).empty();
}

TEST(Room, TakesOneMoreThanAreKept) {
  const CheckpointDemand demand{.bytes = 10.0, .saves = 100, .keep = 3};
  EXPECT_TRUE(fits(demand, 0, 40.0));
  EXPECT_FALSE(fits(demand, 0, 39.0));
  EXPECT_TRUE(fits(demand, 2, 20.0));
  EXPECT_FALSE(fits(demand, 2, 19.0));
  // However many there are, the next is written before one goes.
  EXPECT_TRUE(fits(demand, 7, 10.0));
  EXPECT_FALSE(fits(demand, 7, 9.0));
}

TEST(Room, TakesNoMoreThanWillBeSaved) {
  EXPECT_TRUE(fits({.bytes = 10.0, .saves = 2, .keep = 3}, 0, 20.0));
  EXPECT_FALSE(fits({.bytes = 10.0, .saves = 2, .keep = 3}, 0, 19.0));
  EXPECT_TRUE(fits({.bytes = 10.0, .saves = 0, .keep = 3}, 0, 0.0));
  EXPECT_TRUE(fits({.bytes = 10.0, .saves = 0, .keep = 3}, 9, 0.0));
}

TEST(Room, TakesAllWhereAllAreKept) {
  EXPECT_TRUE(fits({.bytes = 10.0, .saves = 100, .keep = 0}, 5, 1000.0));
  EXPECT_FALSE(fits({.bytes = 10.0, .saves = 100, .keep = 0}, 5, 999.0));
}

TEST(PlaceOfCheckpoints, IsMadeAndLeftEmpty) {
  const testing_support::TemporaryFolder folder;
  const auto ranks = make_self_communicator();
  require_place_for_checkpoints(folder / "run/checkpoints", {.bytes = 1.0, .saves = 1, .keep = 1}, *ranks);
  EXPECT_TRUE(std::filesystem::is_empty(folder / "run/checkpoints"));
}

TEST(PlaceOfCheckpoints, IsRefusedWhereItCannotBe) {
  const testing_support::TemporaryFolder folder;
  const auto ranks = make_self_communicator();
  const CheckpointDemand demand{.bytes = 1.0, .saves = 1, .keep = 1};
  std::ofstream(folder / "file") << "x";
  std::filesystem::create_symlink("/nonexistent/scratch", folder / "link");
  for (const char* name : {"file", "link"})
    testing_support::expect_user_error([&] { require_place_for_checkpoints(folder / name, demand, *ranks); },
                                       {name, "cannot be used as the place of checkpoints"});
  testing_support::expect_user_error(
      [&] { require_place_for_checkpoints(folder / "new", {.bytes = 1e18, .saves = 1, .keep = 1}, *ranks); },
      {"new", "are free on this disk", "checkpoint.keep"});
}

}  // namespace
}  // namespace fulmen
