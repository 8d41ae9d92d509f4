// Philox against the published known answers (Random123's kat_vectors), and the distributions drawn from it.
#include "framework/random.h"

#include <cmath>
#include <set>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

using Words = std::array<std::uint32_t, 4>;

TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, ~std::uint64_t{0}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0x299f31d0'a4093822),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStream, PureFunctionOfSeedNameAndIndex) {
  const RandomStream a(1, "weights"), same(1, "weights"), other_seed(2, "weights"), other_name(1, "weight");
  std::set<std::uint64_t> seen;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    EXPECT_EQ(a.bits(i), same.bits(i));
    EXPECT_EQ(a.normal(i), same.normal(i));
    seen.insert(a.bits(i));
    seen.insert(other_seed.bits(i));
    seen.insert(other_name.bits(i));
  }
  EXPECT_EQ(seen.size(), 3000u);
  const std::uint64_t far = (std::uint64_t{1} << 40) + 3;  // beyond 32 bits of the counter
  EXPECT_NE(a.bits(far), a.bits(3));
}

TEST(RandomStream, UniformFillsTheUnitInterval) {
  const RandomStream stream(7, "uniform");
  constexpr int n = 200'000;
  double sum = 0, squares = 0;
  std::array<int, 10> histogram{};
  for (int i = 0; i < n; ++i) {
    const double x = stream.uniform(i);
    ASSERT_TRUE(x >= 0.0 && x < 1.0);
    sum += x;
    squares += x * x;
    ++histogram[static_cast<std::size_t>(x * 10)];
  }
  EXPECT_NEAR(sum / n, 0.5, 0.004);
  EXPECT_NEAR(squares / n, 1.0 / 3.0, 0.004);
  for (const int count : histogram) EXPECT_NEAR(count, n / 10, 800);
}

TEST(RandomStream, NormalHasItsMoments) {
  const RandomStream stream(11, "normal");
  constexpr int n = 400'000;
  double sum = 0, squares = 0, fourth = 0, neighbours = 0;
  for (int i = 0; i < n; i += 2) {
    const double x = stream.normal(i), y = stream.normal(i + 1);
    ASSERT_TRUE(std::isfinite(x) && std::isfinite(y));
    sum += x + y;
    squares += x * x + y * y;
    fourth += x * x * x * x + y * y * y * y;
    neighbours += x * y;
  }
  EXPECT_NEAR(sum / n, 0.0, 0.01);  // 6 standard errors
  EXPECT_NEAR(squares / n, 1.0, 0.015);
  EXPECT_NEAR(fourth / n, 3.0, 0.1);
  EXPECT_NEAR(2 * neighbours / n, 0.0, 0.015);
}

}  // namespace
}  // namespace fulmen
