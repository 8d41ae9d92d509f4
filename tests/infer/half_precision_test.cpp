// 16-bit formats: every bit pattern goes there and back; rounding is to the nearest of all values, ties to even.
#include "infer/half_precision.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace fulmen {
namespace {

struct Format {
  float (*widen)(std::uint16_t);
  std::uint16_t (*from_float)(float);
  std::uint16_t (*from_double)(double);
  std::uint16_t infinity;
  double largest;
};

const Format formats[] = {{bf16_to_float, to_bf16, to_bf16, 0x7f80, std::ldexp(255.0, 120)},
                          {fp16_to_float, to_fp16, to_fp16, 0x7c00, 65504.0}};

TEST(HalfPrecision, EveryPatternComesBack) {
  for (const Format& format : formats) {
    for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
      const float x = format.widen(static_cast<std::uint16_t>(bits));
      if ((bits & 0x7fffU) > format.infinity) {
        EXPECT_TRUE(std::isnan(x));
        EXPECT_TRUE(std::isnan(format.widen(format.from_float(x))));
        EXPECT_TRUE(std::isnan(format.widen(format.from_double(static_cast<double>(x)))));
        continue;
      }
      ASSERT_EQ(format.from_float(x), bits);
      ASSERT_EQ(format.from_double(static_cast<double>(x)), bits);
    }
  }
}

TEST(HalfPrecision, KnownValues) {
  EXPECT_EQ(fp16_to_float(0x3c00), 1.0F);
  EXPECT_EQ(fp16_to_float(0x0001), 0x1p-24F);
  EXPECT_EQ(fp16_to_float(0xfbff), -65504.0F);
  EXPECT_EQ(bf16_to_float(0x3f80), 1.0F);
  EXPECT_EQ(to_bf16(1.0F + 0x1p-8F), 0x3f80);          // a tie, to even
  EXPECT_EQ(to_bf16(1.0 + 0x1p-8 + 0x1p-40), 0x3f81);  // no tie, though it is one after rounding to fp32
  EXPECT_EQ(to_fp16(65520.0F), 0x7c00);
  EXPECT_EQ(to_fp16(-1e300), 0xfc00);
  EXPECT_EQ(to_bf16(1e300), 0x7f80);
  EXPECT_EQ(to_fp16(0x1p-25), 0x0000);  // a tie with zero
  EXPECT_EQ(to_fp16(0x1.8p-25), 0x0001);
  EXPECT_EQ(to_bf16(std::numeric_limits<double>::denorm_min()), 0x0000);
}

// The finite values in order; the even pattern of two neighbours is the even one here, too.
TEST(HalfPrecision, RoundsToTheNearest) {
  std::mt19937_64 generator(99);
  for (const Format& format : formats) {
    std::vector<double> values;
    for (std::uint32_t bits = 0; bits < format.infinity; ++bits) {
      values.push_back(format.widen(static_cast<std::uint16_t>(bits)));
    }
    for (int i = 0; i < 20000; ++i) {
      const auto above =
          static_cast<std::size_t>(std::uniform_int_distribution<std::size_t>(1, values.size() - 1)(generator));
      const double low = values[above - 1], high = values[above];
      const double share = i % 4 == 0 ? 0.5 : std::uniform_real_distribution<double>(0, 1)(generator);
      const double x = low + share * (high - low);
      const double to_low = x - low, to_high = high - x;
      const bool down = to_low != to_high ? to_low < to_high : (above - 1) % 2 == 0;
      const auto expected = static_cast<std::uint16_t>(down ? above - 1 : above);
      ASSERT_EQ(format.from_double(x), expected) << x;
      ASSERT_EQ(format.from_double(-x), expected | 0x8000U) << x;
      const float narrow = static_cast<float>(x);
      ASSERT_EQ(format.from_float(narrow), format.from_double(static_cast<double>(narrow))) << narrow;
    }
  }
}

}  // namespace
}  // namespace fulmen
