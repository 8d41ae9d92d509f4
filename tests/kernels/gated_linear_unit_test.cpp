// The gated linear unit: against the oracle, against finite differences, strided and in place.
#include "kernels/gated_linear_unit.h"

#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/wide_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Sliced;
using testing::Values;

constexpr Activation activations[] = {Activation::none, Activation::silu, Activation::sigmoid};

TEST(GatedLinearUnit, EqualsTheOracle) {
  std::uint64_t stream = 80000;
  for (const std::int64_t width : {1, 3, 16, 77, 704}) {
    for (const DType dtype : testing::test_dtypes()) {
      for (const Activation activation : activations) {
        Random random(++stream);
        Host host;
        const std::int64_t tokens = random.integer(1, 60);
        const double tolerance = testing::tolerance_of(dtype);
        const auto values = [&] { return testing::rounded(random.normals(tokens * width, 3.0), dtype); };
        const Values a = values(), b = values(), d_y = values();
        const Tensor fused = host.poisoned(dtype, {tokens, 2 * width + 3});
        const Tensor as = fused.slice(1, 0, width), bs = fused.slice(1, width, 2 * width);
        testing::write(as, a), testing::write(bs, b);
        const Tensor d_ys = host.strided(dtype, tokens, width, 1, d_y);
        const Tensor y = host.poisoned_strided(dtype, tokens, width, 2);
        gated_linear_unit_forward(host.execution, as, bs, activation, y);
        testing::expect_close(y, reference::gated_linear_unit(a, b, activation), tolerance, "y");
        const auto expected = reference::gated_linear_unit_backward(a, b, activation, d_y);
        const Tensor d_a = host.poisoned_strided(dtype, tokens, width, 2);
        const Tensor d_b = host.poisoned_strided(dtype, tokens, width, 5);
        gated_linear_unit_backward(host.execution, d_ys, as, bs, activation, d_a, d_b, {});
        testing::expect_close(d_a, expected.d_a, tolerance, "d_a");
        testing::expect_close(d_b, expected.d_b, tolerance, "d_b");
        gated_linear_unit_backward(host.execution, d_ys, as, bs, activation, as, bs, d_ys);
        EXPECT_EQ(testing::read(as), testing::read(d_a)) << "in place";
        EXPECT_EQ(testing::read(bs), testing::read(d_b)) << "in place";
        EXPECT_EQ(testing::read(d_ys), testing::read(y)) << "in place";
      }
    }
  }
}

TEST(GatedLinearUnit, BackwardEqualsFiniteDifferences) {
  Random random(81000);
  for (const Activation activation : activations) {
    Host host;
    const Values d_y = random.normals(5 * 7);
    const Tensor a = host.tensor(DType::fp64, {5, 7}, random.normals(35));
    const Tensor b = host.tensor(DType::fp64, {5, 7}, random.normals(35));
    const Tensor y = host.poisoned(DType::fp64, {5, 7});
    const Tensor d_a = host.poisoned(DType::fp64, {5, 7}), d_b = host.poisoned(DType::fp64, {5, 7});
    const auto loss = [&] {
      gated_linear_unit_forward(host.execution, a, b, activation, y);
      return testing::weighted_sum(d_y, testing::read(y));
    };
    gated_linear_unit_backward(host.execution, host.tensor(DType::fp64, {5, 7}, d_y), a, b, activation, d_a, d_b, {});
    testing::expect_close(d_a, testing::finite_differences(a, 1e-3, loss), 1e-8, "d_a");
    testing::expect_close(d_b, testing::finite_differences(b, 1e-3, loss), 1e-8, "d_b");
  }
}

void check_wide(DType dtype, std::int64_t rows, std::int64_t width, std::int64_t offset, Activation activation,
                Random& random) {
  SCOPED_TRACE(fmt::format("{} [{}, {}] at {}", name_of(dtype), rows, width, offset));
  Host host;
  const double tolerance = testing::tolerance_of(dtype);
  const auto values = [&] { return testing::rounded(random.normals(rows * width), dtype); };
  const Values a = values(), b = values(), d_y = values();
  const Sliced as(host, dtype, width, offset, a), bs(host, dtype, width, offset, b);
  const Sliced d_ys(host, dtype, width, offset, d_y), y(host, dtype, rows, width, offset);
  const Sliced d_a(host, dtype, rows, width, offset), d_b(host, dtype, rows, width, offset);
  gated_linear_unit_forward(host.execution, as, bs, activation, y);
  testing::expect_close(y, reference::gated_linear_unit(a, b, activation), tolerance, "y");
  const auto expected = reference::gated_linear_unit_backward(a, b, activation, d_y);
  const Sliced again(host, dtype, rows, width, offset);
  gated_linear_unit_backward(host.execution, d_ys, as, bs, activation, d_a, d_b, again);
  testing::expect_close(d_a, expected.d_a, tolerance, "d_a");
  testing::expect_close(d_b, expected.d_b, tolerance, "d_b");
  EXPECT_EQ(testing::read(again.part), testing::read(y.part));
  gated_linear_unit_backward(host.execution, d_ys, as, bs, activation, as, bs, d_ys);
  EXPECT_EQ(testing::read(as.part), testing::read(d_a.part)) << "in place";
  EXPECT_EQ(testing::read(bs.part), testing::read(d_b.part)) << "in place";
  EXPECT_EQ(testing::read(d_ys.part), testing::read(y.part)) << "in place";
  for (const Sliced* written : {&y, &d_a, &d_b, &again, &as, &bs, &d_ys}) written->expect_margins_untouched();
}

TEST(GatedLinearUnit, EqualsTheOracleAtEveryWidthAndAlignment) {
  Random random(82000);
  std::size_t turn = 0;
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t width : testing::wide_widths)
      for (const std::int64_t offset : testing::slice_offsets)
        check_wide(dtype, testing::rows_for(width), width, offset, activations[turn++ % 3], random);
}

TEST(GatedLinearUnit, ManyRows) {
  Random random(83000);
  for (const DType dtype : testing::test_dtypes())
    check_wide(dtype, testing::many_rows, 8, 0, Activation::silu, random);
}

TEST(GatedLinearUnit, ExtremeGatesStayFiniteAndNaNPasses) {
  const Values gates = {-1e4, -200, -100, -88, -20, -1, 0, 1, 20, 88, 100, 200, 1e4};
  const auto count = static_cast<std::int64_t>(gates.size());
  for (const DType dtype : testing::test_dtypes()) {
    for (const Activation activation : activations) {
      Host host;
      const Values a = testing::rounded(gates, dtype), ones(gates.size(), 1.0);
      const Tensor as = host.tensor(dtype, {1, count}, a), bs = host.tensor(dtype, {1, count}, ones);
      const Tensor y = host.poisoned(dtype, {1, count});
      const Tensor d_a = host.poisoned(dtype, {1, count}), d_b = host.poisoned(dtype, {1, count});
      gated_linear_unit_forward(host.execution, as, bs, activation, y);
      gated_linear_unit_backward(host.execution, bs, as, bs, activation, d_a, d_b, {});
      const auto expected = reference::gated_linear_unit_backward(a, ones, activation, ones);
      testing::expect_close(y, reference::gated_linear_unit(a, ones, activation), testing::tolerance_of(dtype), "y");
      testing::expect_close(d_a, expected.d_a, testing::tolerance_of(dtype), "d_a");
      testing::expect_close(d_b, expected.d_b, testing::tolerance_of(dtype), "d_b");
      const Tensor nan = host.poisoned(dtype, {1, 16}), one = host.tensor(dtype, {1, 16}, Values(16, 1.0));
      const Tensor out = host.tensor(dtype, {1, 16}, Values(16, 1.0));
      gated_linear_unit_forward(host.execution, nan, one, activation, out);
      for (const double value : testing::read(out)) EXPECT_TRUE(std::isnan(value));
    }
  }
}

}  // namespace
}  // namespace fulmen
