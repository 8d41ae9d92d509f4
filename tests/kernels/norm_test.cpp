// The norms: against the oracle, against finite differences, split over ranks, strided and in place.
#include "kernels/norm.h"

#include "framework/threads.h"
#include "kernels/reference/activation.h"
#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/wide_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Sliced;
using testing::Values;

constexpr double epsilon = 1e-6;
constexpr std::int64_t widths[] = {1, 3, 16, 65, 512};
constexpr Activation activations[] = {Activation::none, Activation::silu, Activation::sigmoid};

// At width 1 the two terms of a gradient cancel to epsilon's share of them, in the dtype that they are computed in.
double gradient_tolerance(DType dtype, std::int64_t width) {
  const double computed = testing::tolerance_of(accumulation_dtype(dtype)) * (width == 1 ? 1e6 : 1.0);
  return std::max(testing::tolerance_of(dtype), computed);
}

Values sum_of(const Values& a, const Values& b) {
  Values sum(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) sum[i] = a[i] + b[i];
  return sum;
}

// The square sum of each row in `parts` of them, [rows, parts].
Values sums_of_squares(const Values& x, std::int64_t width, std::int64_t parts) {
  Values sums(x.size() / width * parts, 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) sums[i / width * parts + i % width % parts] += x[i] * x[i];
  return sums;
}

TEST(ResidualNorm, ForwardAndBackwardEqualTheOracle) {
  std::uint64_t stream = 70000;
  for (const std::int64_t width : widths) {
    for (const DType dtype : testing::test_dtypes()) {
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
        const Tensor inverse_rms = host.poisoned(accumulation_dtype(dtype), {tokens});
        residual_norm_forward(host.execution, residuals,
                              branch ? host.strided(dtype, tokens, width, 1, added) : Tensor(), epsilon, sums, normed,
                              inverse_rms);
        testing::expect_close(sums, total, tolerance, "sum");
        testing::expect_close(normed, reference::simple_rms_norm(total, width, epsilon), tolerance, "normed");
        const Values d_normed = testing::rounded(random.normals(count), dtype);
        const Values past = testing::rounded(d_residual ? random.normals(count) : Values(count, 0.0), dtype);
        const Values expected = sum_of(past, reference::simple_rms_norm_backward(total, d_normed, width, epsilon));
        const Tensor d_norms = host.strided(dtype, tokens, width, 1, d_normed);
        const Tensor pasts = d_residual ? host.strided(dtype, tokens, width, 1, past) : Tensor();
        const Tensor d_sum = host.poisoned_strided(dtype, tokens, width, 7);
        residual_norm_backward(host.execution, d_norms, sums, inverse_rms, pasts, d_sum, {});
        testing::expect_close(d_sum, expected, gradient_tolerance(dtype, width), fmt::format("d_sum, width {}", width));
        const Tensor in_place = d_residual ? pasts : d_norms, again = d_residual ? d_norms : sums;
        residual_norm_backward(host.execution, d_norms, sums, inverse_rms, pasts, in_place, again);
        EXPECT_EQ(testing::read(in_place), testing::read(d_sum)) << "in place";
        EXPECT_EQ(testing::read(again), testing::read(normed)) << "in place";
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
                         host.tensor(DType::fp64, {4, 9}, d_residual), d_sum, {});
  testing::expect_close(d_sum, testing::finite_differences(residual, 1e-3, loss), 1e-8, "d_residual");
  testing::expect_close(d_sum, testing::finite_differences(branch, 1e-3, loss), 1e-8, "d_branch");
}

TEST(Norm, SumRows) {
  Random random(73000);
  for (const std::int64_t width : widths) {
    for (const DType dtype : {DType::fp64, DType::fp32}) {
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
      for (const DType dtype : testing::test_dtypes()) {
        for (const Activation activation : activations) {
          Random random(++stream);
          Host host;
          const std::int64_t tokens = random.integer(1, 40), width = ranks * local, parts = random.integer(1, 40);
          const double tolerance = gradient_tolerance(dtype, width);
          const auto values = [&] { return testing::rounded(random.normals(tokens * width), dtype); };
          const Values x = values(), gate = values(), d_y = values();
          const Tensor squares =
              host.strided(accumulation_dtype(dtype), tokens, parts, 3, sums_of_squares(x, width, parts));
          const Tensor xs = host.strided(dtype, tokens, width, 2, x);
          const Tensor gates = host.strided(dtype, tokens, width, 4, gate);
          const Tensor d_ys = host.strided(dtype, tokens, width, 1, d_y);
          const Tensor y = host.poisoned_strided(dtype, tokens, width, 3);
          const Tensor again = host.poisoned(dtype, {tokens, width});
          const Tensor d_x = host.poisoned(dtype, {tokens, width});
          const Tensor d_gate = host.poisoned_strided(dtype, tokens, width, 9);
          const Tensor inverse_rms = host.poisoned(accumulation_dtype(dtype), {tokens});
          Values dot(tokens, 0.0);
          const auto own = [&](const Tensor& t, int rank) { return t.slice(1, rank * local, (rank + 1) * local); };
          for (int rank = 0; rank < ranks; ++rank) {
            gated_norm_forward(host.execution, own(xs, rank), squares, width, epsilon, own(gates, rank), activation,
                               own(y, rank), inverse_rms);
            const Tensor partial = host.poisoned(accumulation_dtype(dtype), {tokens});
            gated_norm_backward_dot(host.execution, own(d_ys, rank), own(xs, rank), inverse_rms, own(gates, rank),
                                    activation, partial);
            dot = sum_of(dot, testing::read(partial));
          }
          for (int rank = 0; rank < ranks; ++rank)
            gated_norm_backward(host.execution, own(d_ys, rank), own(xs, rank), inverse_rms, own(gates, rank),
                                activation, host.tensor(accumulation_dtype(dtype), {tokens}, dot), width,
                                own(d_x, rank), own(d_gate, rank), own(again, rank));
          const auto expected = reference::gated_norm_backward(x, gate, activation, d_y, width, epsilon);
          testing::expect_close(y, reference::gated_norm(x, gate, activation, width, epsilon), tolerance, "y");
          EXPECT_EQ(testing::read(again), testing::read(y));
          testing::expect_close(d_x, expected.d_x, tolerance, fmt::format("d_x, width {}", width));
          testing::expect_close(d_gate, expected.d_gate, tolerance, "d_gate");
          if (ranks > 1) continue;
          // Whole: the pass forms the dot itself, and leaves each result where an argument was.
          gated_norm_backward(host.execution, d_ys, xs, inverse_rms, gates, activation, {}, width, xs, gates, d_ys);
          testing::expect_close(xs, expected.d_x, tolerance, fmt::format("d_x in one pass, width {}", width));
          EXPECT_EQ(testing::read(gates), testing::read(d_gate)) << "in one pass";
          EXPECT_EQ(testing::read(d_ys), testing::read(y)) << "in one pass";
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
    const Tensor d_ys = host.tensor(DType::fp64, {3, 10}, d_y);
    const Tensor d_x = host.poisoned(DType::fp64, {3, 10}), d_gate = host.poisoned(DType::fp64, {3, 10});
    const auto loss = [&] {
      const Tensor squares = host.tensor(DType::fp64, {3, 2}, sums_of_squares(testing::read(x), 10, 2));
      gated_norm_forward(host.execution, x, squares, 10, epsilon, gate, activation, y, inverse_rms);
      return testing::weighted_sum(d_y, testing::read(y));
    };
    loss();
    gated_norm_backward(host.execution, d_ys, x, inverse_rms, gate, activation, {}, 10, d_x, d_gate, {});
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
    host.execution.deterministic = true;
    const Tensor xs = host.tensor(DType::fp32, {700, 300}, x), normed = host.poisoned(DType::fp32, {700, 300});
    const Tensor inverse_rms = host.poisoned(DType::fp32, {700}), d_sum = host.poisoned(DType::fp32, {700, 300});
    const Tensor d_ys = host.tensor(DType::fp32, {700, 300}, d_y), gates = host.tensor(DType::fp32, {700, 300}, gate);
    const Tensor dot = host.poisoned(DType::fp32, {700}), d_gated = host.poisoned(DType::fp32, {700, 300});
    residual_norm_forward(host.execution, xs, Tensor(), epsilon, Tensor(), normed, inverse_rms);
    residual_norm_backward(host.execution, d_ys, xs, inverse_rms, Tensor(), d_sum, {});
    gated_norm_backward_dot(host.execution, d_ys, xs, inverse_rms, gates, Activation::silu, dot);
    gated_norm_backward(host.execution, d_ys, xs, inverse_rms, gates, Activation::silu, {}, 300, d_gated, gates, {});
    Values all;
    for (const Tensor& t : {normed, inverse_rms, d_sum, dot, d_gated})
      for (const double value : testing::read(t)) all.push_back(value);
    results.push_back(all);
  }
  set_compute_threads(threads);
  for (const Values& other : results) EXPECT_EQ(other, results[0]);
}

// The oracle's formulas with each row's sums formed once: the oracle itself takes their square in time.
struct WideOracle {
  Values normed, d_sum;
};

WideOracle wide_oracle(const Values& x, const Values& d_normed, const Values& past, std::int64_t width) {
  WideOracle result{Values(x.size()), Values(x.size())};
  for (std::size_t row = 0; row < x.size(); row += width) {
    double squares = 0, dot = 0;
    for (std::int64_t j = 0; j < width; ++j) squares += x[row + j] * x[row + j];
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(width) + epsilon);
    for (std::int64_t j = 0; j < width; ++j) dot += d_normed[row + j] * x[row + j] * inverse;
    for (std::int64_t j = 0; j < width; ++j) {
      const double normed = x[row + j] * inverse;
      result.normed[row + j] = normed;
      result.d_sum[row + j] = past[row + j] + inverse * (d_normed[row + j] - normed * dot / static_cast<double>(width));
    }
  }
  return result;
}

void check_wide_residual_norm(DType dtype, std::int64_t rows, std::int64_t width, std::int64_t offset, bool branch,
                              Random& random) {
  SCOPED_TRACE(fmt::format("{} [{}, {}] at {}", name_of(dtype), rows, width, offset));
  Host host;
  const std::int64_t count = rows * width;
  const double tolerance = testing::tolerance_of(dtype);
  const auto values = [&] { return testing::rounded(random.normals(count), dtype); };
  const Values residual = values(), d_normed = values();
  const Values added = branch ? values() : Values(count, 0.0), past = branch ? values() : Values(count, 0.0);
  const Values total = testing::rounded(sum_of(residual, added), dtype);
  const WideOracle expected = wide_oracle(total, d_normed, past, width);
  const Sliced residuals(host, dtype, width, offset, residual), branches(host, dtype, width, offset, added);
  const Sliced sums(host, dtype, rows, width, offset), normed(host, dtype, rows, width, offset);
  const Tensor inverse_rms = host.poisoned(accumulation_dtype(dtype), {rows});
  residual_norm_forward(host.execution, residuals, branch ? branches.part : Tensor(), epsilon,
                        branch ? sums.part : Tensor(), normed, inverse_rms);
  if (branch) {
    EXPECT_EQ(testing::read(sums.part), total);
    sums.expect_margins_untouched();
  }
  normed.expect_margins_untouched();
  testing::expect_close(normed, expected.normed, tolerance, "normed");
  const Tensor& total_here = branch ? sums.part : residuals.part;
  const Sliced again(host, dtype, rows, width, offset), d_sum(host, dtype, rows, width, offset);
  const Sliced d_norms(host, dtype, width, offset, d_normed), pasts(host, dtype, width, offset, past);
  residual_norm_backward(host.execution, d_norms, total_here, inverse_rms, branch ? pasts.part : Tensor(), d_sum,
                         again);
  EXPECT_EQ(testing::read(again.part), testing::read(normed.part));
  for (const Sliced* written : {&d_sum, &again}) written->expect_margins_untouched();
  testing::expect_close(d_sum, expected.d_sum, gradient_tolerance(dtype, width), "d_sum");
  // In place: where the rows do not fit in the registers, what is read again must not be written yet.
  const Sliced &target = branch ? pasts : d_norms, &normed_again = branch ? d_norms : again;
  residual_norm_backward(host.execution, d_norms, total_here, inverse_rms, branch ? pasts.part : Tensor(), target,
                         normed_again);
  EXPECT_EQ(testing::read(target.part), testing::read(d_sum.part)) << "in place";
  EXPECT_EQ(testing::read(normed_again.part), testing::read(normed.part)) << "in place";
  if (!branch) return;
  residual_norm_forward(host.execution, residuals, branches, epsilon, branches, again, inverse_rms);
  EXPECT_EQ(testing::read(branches.part), total) << "the sum in the branch's place";
  EXPECT_EQ(testing::read(again.part), testing::read(normed.part)) << "the sum in the branch's place";
}

TEST(ResidualNorm, EqualsTheOracleAtEveryWidthAndAlignment) {
  Random random(77000);
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t width : testing::wide_widths)
      for (const std::int64_t offset : testing::slice_offsets)
        for (const bool branch : {false, true})
          check_wide_residual_norm(dtype, testing::rows_for(width), width, offset, branch, random);
}

TEST(ResidualNorm, ManyRows) {
  Random random(77500);
  for (const DType dtype : testing::test_dtypes())
    check_wide_residual_norm(dtype, testing::many_rows, 8, 0, true, random);
}

TEST(ResidualNorm, NaNStaysInItsRow) {
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t width : {8, 2048}) {
      Host host;
      Values x(5 * width, 1.0);
      x[2 * width + 3] = std::nan("");
      const Tensor normed = host.poisoned(dtype, {5, width});
      const Tensor inverse_rms = host.poisoned(accumulation_dtype(dtype), {5});
      residual_norm_forward(host.execution, host.tensor(dtype, {5, width}, x), Tensor(), epsilon, Tensor(), normed,
                            inverse_rms);
      const Values all = testing::read(normed);
      for (std::int64_t i = 0; i < 5 * width; ++i) ASSERT_EQ(std::isnan(all[i]), i / width == 2) << i;
    }
  }
}

void check_wide_gated_norm(DType dtype, std::int64_t rows, std::int64_t width, std::int64_t offset,
                           Activation activation, Random& random) {
  SCOPED_TRACE(fmt::format("{} [{}, {}] at {}", name_of(dtype), rows, width, offset));
  Host host;
  const DType sums_dtype = accumulation_dtype(dtype);
  const auto values = [&] { return testing::rounded(random.normals(rows * width), dtype); };
  const Values x = values(), gate = values(), d_y = values();
  Values d_normed(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) d_normed[i] = d_y[i] * reference::activate(activation, gate[i]);
  const WideOracle oracle = wide_oracle(x, d_normed, Values(x.size(), 0.0), width);
  Values expected_y(x.size()), expected_d_gate(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    expected_y[i] = reference::activate(activation, gate[i]) * oracle.normed[i];
    expected_d_gate[i] = d_y[i] * oracle.normed[i] * reference::activation_derivative(activation, gate[i]);
  }
  const Sliced xs(host, dtype, width, offset, x), gates(host, dtype, width, offset, gate);
  const Sliced d_ys(host, dtype, width, offset, d_y), y(host, dtype, rows, width, offset);
  const Sliced again(host, dtype, rows, width, offset);
  const Sliced d_x(host, dtype, rows, width, offset), d_gate(host, dtype, rows, width, offset);
  const Tensor squares = host.tensor(sums_dtype, {rows, 16}, sums_of_squares(x, width, 16));
  const Tensor inverse_rms = host.poisoned(sums_dtype, {rows}), dot = host.poisoned(sums_dtype, {rows});
  gated_norm_forward(host.execution, xs, squares, width, epsilon, gates, activation, y, inverse_rms);
  gated_norm_backward_dot(host.execution, d_ys, xs, inverse_rms, gates, activation, dot);
  gated_norm_backward(host.execution, d_ys, xs, inverse_rms, gates, activation, dot, width, d_x, d_gate, again);
  testing::expect_close(y, expected_y, testing::tolerance_of(dtype), "y");
  EXPECT_EQ(testing::read(again.part), testing::read(y.part));
  testing::expect_close(d_x, oracle.d_sum, gradient_tolerance(dtype, width), "d_x");
  testing::expect_close(d_gate, expected_d_gate, testing::tolerance_of(dtype), "d_gate");
  for (const Sliced* written : {&y, &again, &d_x, &d_gate}) written->expect_margins_untouched();
  // In one pass and in place: where the rows do not fit in the registers, what is read again must not be written yet.
  gated_norm_backward(host.execution, d_ys, xs, inverse_rms, gates, activation, {}, width, d_ys, gates, xs);
  testing::expect_close(d_ys, oracle.d_sum, gradient_tolerance(dtype, width), "d_x in one pass");
  EXPECT_EQ(testing::read(gates.part), testing::read(d_gate.part)) << "in one pass";
  EXPECT_EQ(testing::read(xs.part), testing::read(y.part)) << "in one pass";
  for (const Sliced* written : {&d_ys, &gates, &xs}) written->expect_margins_untouched();
}

TEST(GatedNorm, EqualsTheOracleAtEveryWidthAndAlignment) {
  Random random(78000);
  std::size_t turn = 0;
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t width : testing::wide_widths)
      for (const std::int64_t offset : testing::slice_offsets)
        check_wide_gated_norm(dtype, testing::rows_for(width), width, offset, activations[turn++ % 3], random);
}

TEST(GatedNorm, ManyRows) {
  Random random(78500);
  for (const DType dtype : testing::test_dtypes())
    check_wide_gated_norm(dtype, testing::many_rows, 8, 0, Activation::silu, random);
}

TEST(Norm, SumRowsOfHeads) {
  Random random(79000);
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    for (const std::int64_t heads : {0, 1, 4, 8, 12, 16, 128, 5000}) {
      Host host;
      const std::int64_t rows = heads > 128 ? 5 : 3001;
      const Values values = testing::rounded(random.normals(rows * heads), dtype);
      Values expected(rows, 0.0);
      for (std::size_t i = 0; i < values.size(); ++i) expected[i / heads] += values[i];
      const Tensor sums = host.poisoned(dtype, {rows});
      sum_rows(host.execution, host.tensor(dtype, {rows, heads}, values), sums);
      testing::expect_close(sums, expected, testing::tolerance_of(dtype), fmt::format("{} heads", heads));
    }
  }
}

TEST(Norm, RepeatsItselfBitForBit) {
  Random random(79500);
  for (const DType dtype : testing::test_dtypes()) {
    Host host;
    const std::int64_t rows = 9, width = 5632;
    const Tensor x = host.tensor(dtype, {rows, width}, random.normals(rows * width));
    const Tensor d_y = host.tensor(dtype, {rows, width}, random.normals(rows * width));
    std::vector<Values> results;
    for (int i = 0; i < 3; ++i) {
      const Tensor normed = host.poisoned(dtype, {rows, width}), d_sum = host.poisoned(dtype, {rows, width});
      const Tensor inverse_rms = host.poisoned(accumulation_dtype(dtype), {rows});
      residual_norm_forward(host.execution, x, Tensor(), epsilon, Tensor(), normed, inverse_rms);
      residual_norm_backward(host.execution, d_y, x, inverse_rms, Tensor(), d_sum, {});
      results.push_back(testing::read(d_sum));
      EXPECT_TRUE(std::isfinite(results.back()[0]));
      EXPECT_EQ(results.back(), results.front());
    }
  }
}

}  // namespace
}  // namespace fulmen
