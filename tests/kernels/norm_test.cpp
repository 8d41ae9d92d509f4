// The norms: against the oracle, against finite differences, split over ranks, strided and in place.
#include "kernels/norm.h"

#include "framework/threads.h"
#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

constexpr DType dtypes[] = {DType::fp64, DType::fp32};
constexpr double epsilon = 1e-6;
constexpr std::int64_t widths[] = {1, 3, 16, 65, 512};
constexpr Activation activations[] = {Activation::none, Activation::silu, Activation::sigmoid};

Values sum_of(const Values& a, const Values& b) {
  Values sum(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) sum[i] = a[i] + b[i];
  return sum;
}

Values row_sums_of_squares(const Values& x, std::int64_t width) {
  Values sums(x.size() / width, 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) sums[i / width] += x[i] * x[i];
  return sums;
}

TEST(ResidualNorm, ForwardAndBackwardEqualTheOracle) {
  std::uint64_t stream = 70000;
  for (const std::int64_t width : widths) {
    for (const DType dtype : dtypes) {
      for (int variant = 0; variant < 4; ++variant) {
        Random random(++stream);
        Host host;
        const std::int64_t tokens = random.integer(1, 50), count = tokens * width;
        const bool branch = variant & 1, d_residual = variant & 2;
        const double tolerance = testing::tolerance_of(dtype);
        const Values residual = testing::rounded(random.normals(count), dtype);
        const Values added = testing::rounded(branch ? random.normals(count) : Values(count, 0.0), dtype);
        const Values total = testing::rounded(sum_of(residual, added), dtype);
        const Tensor residuals = host.strided(dtype, tokens, width, 3, residual);
        const Tensor sums = branch ? host.poisoned_strided(dtype, tokens, width, 5) : residuals;
        const Tensor normed = host.poisoned_strided(dtype, tokens, width, 2);
        const Tensor inverse_rms = host.poisoned(dtype, {tokens});
        residual_norm_forward(host.execution, residuals,
                              branch ? host.strided(dtype, tokens, width, 1, added) : Tensor(), epsilon, sums, normed,
                              inverse_rms);
        testing::expect_close(sums, total, tolerance, "sum");
        testing::expect_close(normed, reference::simple_rms_norm(total, width, epsilon), tolerance, "normed");
        const Tensor again = host.poisoned_strided(dtype, tokens, width, 4);
        norm_apply(host.execution, sums, inverse_rms, again);
        EXPECT_EQ(testing::read(again), testing::read(normed));

        const Values d_normed = testing::rounded(random.normals(count), dtype);
        const Values past = testing::rounded(d_residual ? random.normals(count) : Values(count, 0.0), dtype);
        const Values expected = sum_of(past, reference::simple_rms_norm_backward(total, d_normed, width, epsilon));
        const Tensor d_norms = host.strided(dtype, tokens, width, 1, d_normed);
        const Tensor pasts = d_residual ? host.strided(dtype, tokens, width, 1, past) : Tensor();
        const Tensor d_sum = host.poisoned_strided(dtype, tokens, width, 7);
        residual_norm_backward(host.execution, d_norms, sums, inverse_rms, pasts, d_sum);
        // At width 1 the two terms cancel to epsilon's share of them.
        const double scale = width == 1 ? 1e6 : 1.0;
        testing::expect_close(d_sum, expected, scale * tolerance, fmt::format("d_sum, width {}", width));
        residual_norm_backward(host.execution, d_norms, sums, inverse_rms, pasts, d_residual ? pasts : d_norms);
        EXPECT_EQ(testing::read(d_residual ? pasts : d_norms), testing::read(d_sum)) << "in place";
      }
    }
  }
}

TEST(ResidualNorm, SumMayBeTheResidual) {
  Random random(71000);
  Host host;
  const Values a = random.normals(60), b = random.normals(60);
  const Tensor residual = host.tensor(DType::fp64, {5, 12}, a);
  const Tensor normed = host.poisoned(DType::fp64, {5, 12}), inverse_rms = host.poisoned(DType::fp64, {5});
  residual_norm_forward(host.execution, residual, host.tensor(DType::fp64, {5, 12}, b), epsilon, residual, normed,
                        inverse_rms);
  testing::expect_close(residual, sum_of(a, b), 1e-15, "sum");
  testing::expect_close(normed, reference::simple_rms_norm(sum_of(a, b), 12, epsilon), 1e-12, "normed");
}

TEST(ResidualNorm, BackwardEqualsFiniteDifferences) {
  Random random(72000);
  Host host;
  const Values d_normed = random.normals(4 * 9), d_residual = random.normals(4 * 9);
  const Tensor residual = host.tensor(DType::fp64, {4, 9}, random.normals(36));
  const Tensor branch = host.tensor(DType::fp64, {4, 9}, random.normals(36));
  const Tensor sum = host.poisoned(DType::fp64, {4, 9}), normed = host.poisoned(DType::fp64, {4, 9});
  const Tensor inverse_rms = host.poisoned(DType::fp64, {4}), d_sum = host.poisoned(DType::fp64, {4, 9});
  const auto loss = [&] {
    residual_norm_forward(host.execution, residual, branch, epsilon, sum, normed, inverse_rms);
    return testing::weighted_sum(d_normed, testing::read(normed)) +
           testing::weighted_sum(d_residual, testing::read(sum));
  };
  loss();
  residual_norm_backward(host.execution, host.tensor(DType::fp64, {4, 9}, d_normed), sum, inverse_rms,
                         host.tensor(DType::fp64, {4, 9}, d_residual), d_sum);
  testing::expect_close(d_sum, testing::finite_differences(residual, 1e-3, loss), 1e-8, "d_residual");
  testing::expect_close(d_sum, testing::finite_differences(branch, 1e-3, loss), 1e-8, "d_branch");
}

TEST(Norm, SumRows) {
  Random random(73000);
  for (const std::int64_t width : widths) {
    for (const DType dtype : dtypes) {
      Host host;
      const Values values = testing::rounded(random.normals(11 * width), dtype);
      Values expected(11, 0.0);
      for (std::size_t i = 0; i < values.size(); ++i) expected[i / width] += values[i];
      const Tensor sums = host.poisoned(dtype, {11});
      sum_rows(host.execution, host.strided(dtype, 11, width, 3, values), sums);
      testing::expect_close(sums, expected, testing::tolerance_of(dtype), "row sums");
    }
  }
}

// The width is split over ranks, as tensor parallelism does: statistics are added between the halves.
TEST(GatedNorm, EqualsTheOracleWhenSplit) {
  std::uint64_t stream = 74000;
  for (const int ranks : {1, 2, 4}) {
    for (const std::int64_t local : {1, 5, 16, 96}) {
      for (const DType dtype : dtypes) {
        for (const Activation activation : activations) {
          Random random(++stream);
          Host host;
          const std::int64_t tokens = random.integer(1, 40), width = ranks * local;
          const double tolerance = testing::tolerance_of(dtype) * (width == 1 ? 1e6 : 1.0);
          const auto values = [&] { return testing::rounded(random.normals(tokens * width), dtype); };
          const Values x = values(), gate = values(), d_y = values();
          const Tensor squares = host.tensor(dtype, {tokens}, row_sums_of_squares(x, width));
          const Tensor xs = host.strided(dtype, tokens, width, 2, x);
          const Tensor gates = host.strided(dtype, tokens, width, 4, gate);
          const Tensor d_ys = host.strided(dtype, tokens, width, 1, d_y);
          const Tensor y = host.poisoned_strided(dtype, tokens, width, 3);
          const Tensor again = host.poisoned(dtype, {tokens, width});
          const Tensor d_x = host.poisoned(dtype, {tokens, width});
          const Tensor d_gate = host.poisoned_strided(dtype, tokens, width, 9);
          const Tensor inverse_rms = host.poisoned(dtype, {tokens});
          Values dot(tokens, 0.0);
          const auto own = [&](const Tensor& t, int rank) { return t.slice(1, rank * local, (rank + 1) * local); };
          for (int rank = 0; rank < ranks; ++rank) {
            gated_norm_forward(host.execution, own(xs, rank), squares, width, epsilon, own(gates, rank), activation,
                               own(y, rank), inverse_rms);
            gated_norm_apply(host.execution, own(xs, rank), inverse_rms, own(gates, rank), activation,
                             own(again, rank));
            const Tensor partial = host.poisoned(dtype, {tokens});
            gated_norm_backward_dot(host.execution, own(d_ys, rank), own(xs, rank), inverse_rms, own(gates, rank),
                                    activation, partial);
            dot = sum_of(dot, testing::read(partial));
          }
          for (int rank = 0; rank < ranks; ++rank)
            gated_norm_backward(host.execution, own(d_ys, rank), own(xs, rank), inverse_rms, own(gates, rank),
                                activation, host.tensor(dtype, {tokens}, dot), width, own(d_x, rank),
                                own(d_gate, rank));
          const auto expected = reference::gated_norm_backward(x, gate, activation, d_y, width, epsilon);
          testing::expect_close(y, reference::gated_norm(x, gate, activation, width, epsilon), tolerance, "y");
          EXPECT_EQ(testing::read(again), testing::read(y));
          testing::expect_close(d_x, expected.d_x, tolerance, fmt::format("d_x, width {}", width));
          testing::expect_close(d_gate, expected.d_gate, tolerance, "d_gate");
        }
      }
    }
  }
}

TEST(GatedNorm, BackwardEqualsFiniteDifferences) {
  Random random(75000);
  for (const Activation activation : activations) {
    Host host;
    const Values d_y = random.normals(3 * 10);
    const Tensor x = host.tensor(DType::fp64, {3, 10}, random.normals(30));
    const Tensor gate = host.tensor(DType::fp64, {3, 10}, random.normals(30));
    const Tensor y = host.poisoned(DType::fp64, {3, 10}), inverse_rms = host.poisoned(DType::fp64, {3});
    const Tensor d_ys = host.tensor(DType::fp64, {3, 10}, d_y), dot = host.poisoned(DType::fp64, {3});
    const Tensor d_x = host.poisoned(DType::fp64, {3, 10}), d_gate = host.poisoned(DType::fp64, {3, 10});
    const auto loss = [&] {
      const Tensor squares = host.tensor(DType::fp64, {3}, row_sums_of_squares(testing::read(x), 10));
      gated_norm_forward(host.execution, x, squares, 10, epsilon, gate, activation, y, inverse_rms);
      return testing::weighted_sum(d_y, testing::read(y));
    };
    loss();
    gated_norm_backward_dot(host.execution, d_ys, x, inverse_rms, gate, activation, dot);
    gated_norm_backward(host.execution, d_ys, x, inverse_rms, gate, activation, dot, 10, d_x, d_gate);
    testing::expect_close(d_x, testing::finite_differences(x, 1e-3, loss), 1e-8, "d_x");
    testing::expect_close(d_gate, testing::finite_differences(gate, 1e-3, loss), 1e-8, "d_gate");
  }
}

TEST(Norm, ResultsDoNotDependOnTheThreads) {
  const int threads = compute_threads();
  Random random(76000);
  const Values x = random.normals(700 * 300), d_y = random.normals(700 * 300), gate = random.normals(700 * 300);
  std::vector<Values> results;
  for (const int count : {1, 2, 3, 1}) {
    set_compute_threads(count);
    Host host;
    const Tensor xs = host.tensor(DType::fp32, {700, 300}, x), normed = host.poisoned(DType::fp32, {700, 300});
    const Tensor inverse_rms = host.poisoned(DType::fp32, {700}), d_sum = host.poisoned(DType::fp32, {700, 300});
    const Tensor d_ys = host.tensor(DType::fp32, {700, 300}, d_y), gates = host.tensor(DType::fp32, {700, 300}, gate);
    const Tensor dot = host.poisoned(DType::fp32, {700});
    residual_norm_forward(host.execution, xs, Tensor(), epsilon, Tensor(), normed, inverse_rms);
    residual_norm_backward(host.execution, d_ys, xs, inverse_rms, Tensor(), d_sum);
    gated_norm_backward_dot(host.execution, d_ys, xs, inverse_rms, gates, Activation::silu, dot);
    Values all;
    for (const Tensor& t : {normed, inverse_rms, d_sum, dot})
      for (const double value : testing::read(t)) all.push_back(value);
    results.push_back(all);
  }
  set_compute_threads(threads);
  for (const Values& other : results) EXPECT_EQ(other, results[0]);
}

}  // namespace
}  // namespace fulmen
