// How indices are cut into parts.
#include "parallel/placement.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace fulmen
