// How indices are cut into parts.
#include "parallel/placement.h"

#include <gtest/gtest.h>

#include "framework/error.h"

namespace fulmen {
namespace {

TEST(Partition, CoversTheWholeInOrderWithTheLargerPartsFirst) {
  for (std::int64_t count = 0; count <= 40; ++count) {
    for (int parts = 1; parts <= 12; ++parts) {
      std::int64_t expected_begin = 0;
      for (int index = 0; index < parts; ++index) {
        const IndexRange range = partition(count, parts, index);
        EXPECT_EQ(range.begin, expected_begin);
        EXPECT_EQ(range.size(), count / parts + (index < count % parts ? 1 : 0));
        expected_begin = range.end;
      }
      EXPECT_EQ(expected_begin, count) << count << " units in " << parts << " parts";
    }
  }
}

TEST(Partition, KnownCuts) {
  EXPECT_EQ(partition(10, 3, 0), (IndexRange{0, 4}));
  EXPECT_EQ(partition(10, 3, 1), (IndexRange{4, 7}));
  EXPECT_EQ(partition(10, 3, 2), (IndexRange{7, 10}));
}

TEST(Partition, HoldsBeyond32Bits) {
  const std::int64_t count = 173'524'660'224;
  EXPECT_EQ(partition(count, 1000, 999).end, count);
  EXPECT_EQ(partition(count, 1000, 999).begin, partition(count, 1000, 998).end);
}

TEST(Partition, RefusesWhatIsNoPart) {
  EXPECT_THROW(partition(10, 0, 0), InternalError);
  EXPECT_THROW(partition(10, 3, 3), InternalError);
  EXPECT_THROW(partition(10, 3, -1), InternalError);
  EXPECT_THROW(partition(-1, 3, 0), InternalError);
}

// Heads of keys over tensor ranks: parts where the ranks divide them, copies with neighbours where they divide the
// ranks.
TEST(HeldUnits, CopiesWhereRanksOutnumberUnits) {
  Segment segment{"keys", 0, 12, 2};
  segment.copies = true;
  for (int rank = 0; rank < 6; ++rank) {
    const HeldUnits held = held_units(segment, 6, rank);
    EXPECT_EQ(held.units, (IndexRange{rank / 3, rank / 3 + 1}));
    EXPECT_EQ(held.holders, rank < 3 ? (std::vector<int>{0, 1, 2}) : (std::vector<int>{3, 4, 5}));
  }
  EXPECT_EQ(held_units(segment, 2, 1).units, (IndexRange{1, 2}));
  EXPECT_EQ(held_units(segment, 2, 1).holders, std::vector<int>{1});
  EXPECT_EQ(held_units(segment, 1, 0).units, (IndexRange{0, 2}));
  segment.units = 6;
  EXPECT_EQ(held_units(segment, 3, 2).units, (IndexRange{4, 6}));
  for (const int ranks : {4, 5, 9}) {
    try {
      held_units(segment, ranks, 0);
      FAIL() << ranks;
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find("parallel.tensor"), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("the 6 heads of keys"), std::string::npos) << error.what();
    }
  }
  segment.copies = false;  // cut unevenly then
  EXPECT_EQ(held_units(segment, 4, 0).units, (IndexRange{0, 2}));
}

}  // namespace
}  // namespace fulmen
