// The meaning of the keys under `parallel`.
#include "parallel/layout.h"

#include <gtest/gtest.h>

namespace fulmen {
namespace {

TEST(Overlap, NoneOverlapsNothing) {
  LayoutConfig layout;
  layout.overlap = "none";
  for (const char* what : {"gradients", "weights", "tensor", "pipeline", "sequence"})
    EXPECT_FALSE(layout.overlaps(what)) << what;
  EXPECT_EQ(overlap_problem("none"), "");
  EXPECT_EQ(overlap_problem("auto"), "");
}

TEST(Overlap, AListNamesWhatOverlaps) {
  LayoutConfig layout;
  layout.overlap = "gradients, pipeline";
  EXPECT_TRUE(layout.overlaps("gradients"));
  EXPECT_TRUE(layout.overlaps("pipeline"));
  EXPECT_FALSE(layout.overlaps("weights"));
  EXPECT_THROW(layout.overlaps("gradient"), InternalError);
}

TEST(Overlap, UnknownWordsAreNamed) {
  EXPECT_NE(overlap_problem("gradient").find("'gradient'"), std::string::npos);
  EXPECT_NE(overlap_problem("").find("''"), std::string::npos);
  EXPECT_NE(overlap_problem("none, auto").find("'none'"), std::string::npos);
}

}  // namespace
}  // namespace fulmen
