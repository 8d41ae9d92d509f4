// Exact coverage: random splits pass, any piece dropped, doubled, moved or grown is refused, and thousands are quick.
#include "checkpoint/piece_map.h"

#include <chrono>

#include "tests/checkpoint/checkpoint_helpers.h"

namespace fulmen {
namespace {

using namespace testing_checkpoint;

std::vector<StoredPiece> stored(const Shape& shape, const std::vector<Box>& boxes) {
  std::vector<StoredPiece> pieces;
  for (const Box& box : boxes) {
    pieces.push_back({"parameters/x", DType::fp32, shape, box.offset, box.shape, "shard-00000.h5", "/parameters/x"});
  }
  return pieces;
}

TEST(PieceMap, RandomSplitsCoverAndTheirDamagesDoNot) {
  Generator generator(20240601);
  for (int round = 0; round < 200; ++round) {
    Shape shape;
    for (std::int64_t d = between(generator, 1, 4); d > 0; --d) shape.push_back(between(generator, 1, 12));
    const std::vector<StoredPiece> pieces = stored(shape, random_split(shape, 12, generator));
    EXPECT_EQ(coverage_problem(pieces), "");

    const auto victim = static_cast<std::size_t>(between(generator, 0, static_cast<std::int64_t>(pieces.size()) - 1));
    std::vector<StoredPiece> holed = pieces, doubled = pieces, moved = pieces;
    holed.erase(holed.begin() + static_cast<std::ptrdiff_t>(victim));
    EXPECT_NE(coverage_problem(holed), "");
    doubled.push_back(pieces[victim]);
    EXPECT_NE(coverage_problem(doubled), "");
    moved[victim].offset[0] += 1;  // outside, or over a neighbour
    EXPECT_NE(coverage_problem(moved), "");
  }
}

TEST(PieceMap, AHoleBesideADoubleOfTheSameVolumeIsSeen) {
  EXPECT_NE(coverage_problem(stored({4, 4}, {{{0, 0}, {2, 4}}, {{1, 0}, {2, 4}}})), "");
}

TEST(PieceMap, PiecesMustAgreeOnTheWhole) {
  std::vector<StoredPiece> pieces = stored({4}, {{{0}, {2}}, {{2}, {2}}});
  pieces[1].global_shape = {5};
  expect_mentions(coverage_problem(pieces), {"[4]", "[5]"});
  pieces[1].global_shape = {4};
  pieces[1].dtype = DType::fp64;
  expect_mentions(coverage_problem(pieces), {"fp32", "fp64"});
  EXPECT_NE(coverage_problem({}), "");
}

TEST(PieceMap, TextRoundTrip) {
  Generator generator(7);
  std::vector<StoredPiece> pieces = stored({9, 8, 7}, random_split({9, 8, 7}, 20, generator));
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    pieces[i].dataset = piece_dataset("parameters/x", static_cast<std::int64_t>(i));
  }
  const std::vector<StoredPiece> back = parse_pieces(to_text(pieces));
  ASSERT_EQ(back.size(), pieces.size());
  for (std::size_t i = 0; i < back.size(); ++i) {
    EXPECT_EQ(back[i].offset, pieces[i].offset);
    EXPECT_EQ(back[i].shape, pieces[i].shape);
    EXPECT_EQ(back[i].dataset, pieces[i].dataset);
    EXPECT_EQ(back[i].global_shape, pieces[i].global_shape);
  }
  EXPECT_TRUE(parse_pieces("").empty());
}

TEST(PieceMap, ThousandsOfPiecesAreQuick) {
  std::vector<Box> boxes;  // 8 tensor ranks, each with its columns cut into 1000 ranges of rows
  for (std::int64_t column = 0; column < 8; ++column) {
    for (std::int64_t row = 0; row < 1000; ++row) boxes.push_back({{row * 64, column * 1536}, {64, 1536}});
  }
  const std::vector<StoredPiece> pieces = stored({64000, 12288}, boxes);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(coverage_problem(pieces), "");
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 1.0);
}

}  // namespace
}  // namespace fulmen
