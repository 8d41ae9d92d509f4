// The elementary functions of the CPU backend, over their whole range.
#include "kernels/cpu/vector_math.h"

#include <cmath>

#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

template <class T>
void expect_exponential(T low, T high, double tolerance) {
  testing::Random random(40000);
  double worst = 0;
  for (int i = 0; i < 400000; ++i) {
    const T x = static_cast<T>(random.uniform(low, high));
    const double exact = static_cast<double>(std::exp(static_cast<long double>(x)));
    worst = std::max(worst, std::abs(static_cast<double>(cpu::exponential(x)) - exact) / exact);
  }
  EXPECT_LE(worst, tolerance);
}

TEST(VectorMath, Exponential) {
  FULMEN_CPU_ONLY("functions of the CPU backend");
  expect_exponential<float>(-87.0f, 88.3f, 1.5e-7);
  expect_exponential<float>(-1.0f, 1.0f, 1.5e-7);
  expect_exponential<double>(-700.0, 700.0, 1e-15);
  expect_exponential<double>(-1.0, 1.0, 1e-15);
  EXPECT_EQ(cpu::exponential(0.0f), 1.0f);
  EXPECT_EQ(cpu::exponential(0.0), 1.0);
  EXPECT_EQ(cpu::exponential(-200.0f), 0.0f);
  EXPECT_EQ(cpu::exponential(-1e30f), 0.0f);
  EXPECT_EQ(cpu::exponential(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_EQ(cpu::exponential(-1000.0), 0.0);
  EXPECT_EQ(cpu::exponential(-std::numeric_limits<double>::infinity()), 0.0);
  EXPECT_TRUE(std::isnan(cpu::exponential(std::nanf(""))));
  EXPECT_TRUE(std::isnan(cpu::exponential(std::nan(""))));
}

template <class T>
void expect_sigmoid(double tolerance) {
  testing::Random random(41000);
  for (int i = 0; i < 100000; ++i) {
    const T x = static_cast<T>(random.uniform(-40, 40));
    const double value = 1.0 / (1.0 + std::exp(-static_cast<double>(x)));
    const double complement = 1.0 / (1.0 + std::exp(static_cast<double>(x)));
    const auto actual = cpu::sigmoid(x);
    ASSERT_NEAR(actual.value / value, 1.0, tolerance) << x;
    ASSERT_NEAR(actual.complement / complement, 1.0, tolerance) << x;
    const auto silu = cpu::activate_with_derivative<Activation::silu>(x);
    ASSERT_NEAR(silu.derivative, value * (1 + x * complement), 2 * tolerance) << x;
  }
}

TEST(VectorMath, Sigmoid) {
  FULMEN_CPU_ONLY("functions of the CPU backend");
  expect_sigmoid<float>(4e-7);
  expect_sigmoid<double>(2e-15);
  for (const float x : {-1e4f, 1e4f, -std::numeric_limits<float>::max(), std::numeric_limits<float>::max()}) {
    const auto silu = cpu::activate_with_derivative<Activation::silu>(x);
    EXPECT_NEAR(silu.value, x > 0 ? x : 0.0f, x > 0 ? 0.0f : 20.0f) << x;
    EXPECT_NEAR(silu.derivative, x > 0 ? 1.0f : 0.0f, std::abs(x) > 1e5f ? 20.0f : 1e-6f) << x;
  }
  EXPECT_TRUE(std::isnan(cpu::activate<Activation::silu>(std::nanf(""))));
}

TEST(VectorMath, SineCosine) {
  FULMEN_CPU_ONLY("functions of the CPU backend");
  testing::Random random(42000);
  for (const double range : {1.0, 100.0, 1e4, 1e6}) {
    for (int i = 0; i < 50000; ++i) {
      const double x = random.uniform(-range, range);
      const auto both = cpu::sine_cosine(x);
      ASSERT_NEAR(both.sine, std::sin(x), 4e-16) << x;
      ASSERT_NEAR(both.cosine, std::cos(x), 4e-16) << x;
    }
  }
}

}  // namespace
}  // namespace fulmen
