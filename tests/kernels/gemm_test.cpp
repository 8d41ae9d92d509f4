// Matrix products: every transposition, strides, accumulation, sizes of zero and one.
#include "kernels/gemm.h"

#include "kernels/cpu/small_product.h"
#include "kernels/product_rate.h"
#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

TEST(Gemm, EqualsTheOracle) {
  std::uint64_t stream = 60000;
  const std::int64_t shapes[][3] = {{1, 1, 1},    {1, 17, 9},     {13, 1, 5}, {5, 7, 1}, {33, 65, 17}, {64, 64, 64},
                                    {70, 3, 129}, {100, 130, 61}, {0, 4, 3},  {4, 0, 3}, {4, 3, 0}};
  for (const auto& [m, n, k] : shapes) {
    for (const DType dtype : testing::test_dtypes()) {
      for (int variant = 0; variant < 8; ++variant) {
        Random random(++stream);
        const bool transpose_a = variant & 1, transpose_b = variant & 2, accumulate = variant & 4;
        Host host;
        const Values a = testing::rounded(random.normals(m * k), dtype);
        const Values b = testing::rounded(random.normals(k * n), dtype);
        const Values before = testing::rounded(random.normals(m * n), dtype);
        const double alpha = variant % 3 == 0 ? 1.0 : -0.75;
        Values expected = reference::gemm(a, transpose_a, b, transpose_b, m, n, k);
        for (std::size_t i = 0; i < expected.size(); ++i)
          expected[i] = alpha * expected[i] + (accumulate ? before[i] : 0.0);
        const Tensor left = host.strided(dtype, transpose_a ? k : m, transpose_a ? m : k, variant % 5, a);
        const Tensor right = host.strided(dtype, transpose_b ? n : k, transpose_b ? k : n, variant % 4, b);
        const Tensor c = accumulate ? host.strided(dtype, m, n, 3, before) : host.poisoned_strided(dtype, m, n, 3);
        gemm(host.execution, left, right, c, {transpose_a, transpose_b, accumulate, alpha});
        testing::expect_close(c, expected, testing::tolerance_of(dtype),
                              fmt::format("{} {} x {} x {}, variant {}", name_of(dtype), m, n, k, variant), 1.0);
      }
    }
  }
}

TEST(Gemm, WritesNothingBetweenTheRows) {
  Host host;
  Random random(61000);
  for (const DType dtype : testing::test_dtypes()) {
    const Tensor whole = host.poisoned(dtype, {9, 12});
    gemm(host.execution, host.tensor(dtype, {9, 4}, random.normals(36)), host.tensor(dtype, {4, 7}, random.normals(28)),
         whole.slice(1, 2, 9));
    std::int64_t untouched = 0;
    for (const double value : testing::read(whole)) untouched += std::isnan(value);
    EXPECT_EQ(untouched, 9 * 5);
  }
}

// fp32 factors, fp64 gradients; on a GPU also bf16 factors and gradients of fp32 or fp64.
TEST(Gemm, AccumulatesIntoAWiderMatrix) {
  Random random(62000);
  std::vector<std::pair<DType, DType>> dtypes = {{DType::fp32, DType::fp64}};
  if (testing::on_gpu()) dtypes.insert(dtypes.end(), {{DType::bf16, DType::fp32}, {DType::bf16, DType::fp64}});
  for (const auto& [narrow, wide] : dtypes) {
    for (const bool accumulate : {false, true}) {
      Host host;
      const Values a = testing::rounded(random.normals(20 * 9), narrow);
      const Values b = testing::rounded(random.normals(20 * 11), narrow);
      const Values before = testing::rounded(random.normals(9 * 11), wide);
      Values expected = reference::gemm(a, true, b, false, 9, 11, 20);
      for (std::size_t i = 0; i < expected.size(); ++i)
        expected[i] = 0.5 * expected[i] + (accumulate ? before[i] : 0.0);
      const Tensor c = host.poisoned_strided(wide, 9, 11, 2);
      if (accumulate) testing::write(c, before);
      gemm(host.execution, host.tensor(narrow, {20, 9}, a), host.tensor(narrow, {20, 11}, b), c,
           {.transpose_a = true, .accumulate = accumulate, .alpha = 0.5});
      testing::expect_close(c, expected, 1e-6, fmt::format("{} into {}", name_of(narrow), name_of(wide)));
    }
  }
}

// Terms of which little is left, in matrices larger than what is widened at a time: what is rounded is the sum alone.
TEST(Gemm, Fp32IsRoundedOnceOnAGpu) {
  if (!testing::on_gpu()) GTEST_SKIP() << "The CPU adds fp32 products in fp32.";
  if (!gpu::fast_in_double_precision(testing::test_device().index))
    GTEST_SKIP() << "This GPU adds fp32 products in fp32.";
  Random random(64500);
  constexpr double half_unit = 0x1p-24;  // relative
  const std::int64_t shapes[][3] = {{3, 5, 9000}, {2, 4099, 7}, {4099, 3, 5}, {9, 8, 4096}, {70, 90, 300}};
  for (const auto& [m, n, k] : shapes) {
    for (int variant = 0; variant < 8; ++variant) {
      const bool transpose_a = variant & 1, transpose_b = variant & 2, accumulate = variant & 4;
      Host host;
      Values a = testing::rounded(random.normals(m * k), DType::fp32),
             b = testing::rounded(random.normals(k * n), DType::fp32);
      const auto a_at = [&](std::int64_t i, std::int64_t l) -> double& {
        return a[transpose_a ? l * m + i : i * k + l];
      };
      const auto b_at = [&](std::int64_t l, std::int64_t j) -> double& {
        return b[transpose_b ? j * k + l : l * n + j];
      };
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t l = 0; l + 1 < k; l += 2) a_at(i, l + 1) = a_at(i, l);
      for (std::int64_t l = 0; l + 1 < k; l += 2)
        for (std::int64_t j = 0; j < n; ++j) b_at(l + 1, j) = static_cast<float>(-b_at(l, j) * (1.0 + 1e-4));
      const Values before = testing::rounded(random.normals(m * n, 1e-3), DType::fp32);
      Values expected = reference::gemm(a, transpose_a, b, transpose_b, m, n, k);
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += accumulate ? before[i] : 0.0;
      const Tensor c =
          accumulate ? host.strided(DType::fp32, m, n, 3, before) : host.poisoned_strided(DType::fp32, m, n, 3);
      gemm(host.execution, host.strided(DType::fp32, transpose_a ? k : m, transpose_a ? m : k, variant % 5, a),
           host.strided(DType::fp32, transpose_b ? n : k, transpose_b ? k : n, variant % 4, b), c,
           {transpose_a, transpose_b, accumulate});
      const Values actual = testing::read(c);
      for (std::size_t i = 0; i < expected.size(); ++i)
        ASSERT_LE(std::abs(actual[i] - expected[i]), 1.001 * half_unit * std::abs(expected[i]) + 1e-11)
            << m << " x " << n << " x " << k << ", variant " << variant << ", element " << i;
    }
  }
}

// Large enough for a GPU to choose its algorithm by measurement. The first call must not count more than once, and the
// same call again must give the same bits.
TEST(Gemm, LargeProductsAddOnceAndRepeat) {
  constexpr std::int64_t m = 192, n = 256, k = 320;
  for (const DType dtype : testing::test_dtypes()) {
    for (const bool deterministic : {false, true}) {
      Random random(65000);
      Host host;
      host.execution.deterministic = deterministic;
      const DType wide = accumulation_dtype(dtype);
      const Values a = testing::rounded(random.normals(k * m), dtype);
      const Values b = testing::rounded(random.normals(k * n), dtype);
      const Values before = testing::rounded(random.normals(m * n), wide);
      Values expected = reference::gemm(a, true, b, false, m, n, k);
      const Tensor as = host.tensor(dtype, {k, m}, a), bs = host.tensor(dtype, {k, n}, b);
      const Tensor y = host.poisoned_strided(wide, m, n, 8), first = host.strided(wide, m, n, 8, before);
      gemm(host.execution, as, bs, y, {.transpose_a = true});
      testing::expect_close(y, expected, testing::tolerance_of(wide), "written");
      for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
      linear_backward_weight(host.execution, as, bs, first);
      testing::expect_close(first, expected, testing::tolerance_of(wide), "added");
      const Tensor second = host.strided(wide, m, n, 8, before);
      linear_backward_weight(host.execution, as, bs, second);
      EXPECT_EQ(testing::read(second), testing::read(first));
    }
  }
}

TEST(Gemm, LinearLayer) {
  Random random(63000);
  const std::int64_t tokens = 37, in = 21, out = 45;
  const Values x = random.normals(tokens * in), weight = random.normals(out * in), d_y = random.normals(tokens * out);
  const Values d_x_before = random.normals(tokens * in), d_weight_before = random.normals(out * in);
  Host host;
  const Tensor xs = host.strided(DType::fp64, tokens, in, 4, x), ws = host.tensor(DType::fp64, {out, in}, weight);
  const Tensor d_ys = host.strided(DType::fp64, tokens, out, 2, d_y);
  const Tensor y = host.poisoned_strided(DType::fp64, tokens, out, 6);
  linear_forward(host.execution, xs, ws, y);
  testing::expect_close(y, reference::gemm(x, false, weight, true, tokens, out, in), 1e-12, "y");
  Values d_x = reference::gemm(d_y, false, weight, false, tokens, in, out);
  const Tensor d_xs = host.poisoned_strided(DType::fp64, tokens, in, 2);
  linear_backward_input(host.execution, d_ys, ws, d_xs);
  testing::expect_close(d_xs, d_x, 1e-12, "d_x");
  testing::write(d_xs, d_x_before);
  linear_backward_input(host.execution, d_ys, ws, d_xs, true);
  for (std::size_t i = 0; i < d_x.size(); ++i) d_x[i] += d_x_before[i];
  testing::expect_close(d_xs, d_x, 1e-12, "d_x accumulated");
  Values d_weight = reference::gemm(d_y, true, x, false, out, in, tokens);
  for (std::size_t i = 0; i < d_weight.size(); ++i) d_weight[i] += d_weight_before[i];
  const Tensor d_ws = host.tensor(DType::fp64, {out, in}, d_weight_before);
  linear_backward_weight(host.execution, d_ys, xs, d_ws);
  testing::expect_close(d_ws, d_weight, 1e-12, "d_weight");
}

// A weight that lies as [in, out], read through its transposed view.
TEST(Gemm, LinearLayerOfATransposedWeight) {
  Random random(63500);
  for (const DType dtype : testing::test_dtypes()) {
    const std::int64_t tokens = 37, in = 21, out = 45;
    const Values x = testing::rounded(random.normals(tokens * in), dtype),
                 weight = testing::rounded(random.normals(in * out), dtype),
                 d_y = testing::rounded(random.normals(tokens * out), dtype);
    Host host;
    const double tolerance = testing::tolerance_of(dtype);
    const Tensor xs = host.strided(dtype, tokens, in, 4, x), d_ys = host.strided(dtype, tokens, out, 2, d_y);
    const Tensor ws = host.strided(dtype, in, out, 3, weight).transpose();
    const Tensor y = host.poisoned_strided(dtype, tokens, out, 6), d_x = host.poisoned_strided(dtype, tokens, in, 2);
    const Tensor d_w = host.poisoned(dtype, {in, out});
    linear_forward(host.execution, xs, ws, y);
    testing::expect_close(y, reference::gemm(x, false, weight, false, tokens, out, in), tolerance, "y", 1.0);
    linear_backward_input(host.execution, d_ys, ws, d_x);
    testing::expect_close(d_x, reference::gemm(d_y, false, weight, true, tokens, in, out), tolerance, "d_x", 1.0);
    linear_backward_weight(host.execution, d_ys, xs, d_w.transpose(), false);
    testing::expect_close(d_w, reference::gemm(x, true, d_y, false, in, out, tokens), tolerance, "d_weight", 1.0);
  }
}

TEST(Gemm, RefusesShapesThatDoNotMatch) {
  Host host;
  const auto matrix = [&](std::int64_t rows, std::int64_t columns) {
    return host.poisoned(DType::fp32, {rows, columns});
  };
  EXPECT_THROW(gemm(host.execution, matrix(2, 3), matrix(4, 5), matrix(2, 5)), InternalError);
  EXPECT_THROW(gemm(host.execution, matrix(2, 3), matrix(3, 5), matrix(2, 4)), InternalError);
  EXPECT_THROW(gemm(host.execution, matrix(2, 3), host.poisoned(DType::fp64, {3, 5}), matrix(2, 5)), InternalError);
}

// Between a megaflop and an exaflop per second: neither a unit nor a number of products is lost on the way.
TEST(ProductRate, IsThatOfADeviceOfOurTime) {
  Host host;
  for (const DType dtype : testing::test_dtypes()) {
    int waited = 0;
    const double rate = measure_product_rate(host.execution, dtype, [&] { ++waited; });
    EXPECT_EQ(waited, 1);
    EXPECT_GT(rate, 1e6);
    EXPECT_LT(rate, 1e18);
  }
}

TEST(SmallProduct, TransposesAnyShape) {
  FULMEN_CPU_ONLY("a part of the CPU backend");
  Random random(64000);
  for (const auto& [rows, columns] : {std::pair<int, int>{1, 1}, {4, 4}, {3, 9}, {64, 64}, {13, 66}, {7, 2}}) {
    const Values in = random.normals(rows * (columns + 3));
    Values out(columns * (rows + 5), std::nan(""));
    cpu::transpose(in.data(), std::int64_t{columns + 3}, rows, columns, out.data(), std::int64_t{rows + 5});
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < columns; ++j) ASSERT_EQ(out[j * (rows + 5) + i], in[i * (columns + 3) + j]);
  }
}

}  // namespace
}  // namespace fulmen
