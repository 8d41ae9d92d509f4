// The gated norm over all heads with a gain: whole, and split over two ranks, against the oracle.
#include "kernels/norm.h"
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
constexpr Activation gates[] = {Activation::none, Activation::silu, Activation::sigmoid};

struct Problem {
  Values x, gate, gain, d_y, square_sums;
  reference::HeadNormResult expected;
};

Problem make_problem(Random& random, DType dtype, std::int64_t rows, std::int64_t width, Activation activation) {
  const auto values = [&](std::int64_t count) { return testing::rounded(random.normals(count), dtype); };
  Problem problem{values(rows * width), values(rows * width), values(width),
                  values(rows * width), Values(rows, 0.0),    {}};
  for (std::size_t i = 0; i < problem.x.size(); ++i) problem.square_sums[i / width] += problem.x[i] * problem.x[i];
  problem.expected = reference::head_norm(
      {width, width, problem.x, problem.gate, problem.gain, false, activation, GatePlace::after_norm, epsilon},
      problem.d_y);
  return problem;
}

double gradient_tolerance(DType dtype) { return dtype == DType::fp64 ? 1e-11 : dtype == DType::bf16 ? 2e-2 : 3e-5; }

// The columns [begin, end) of rows of `width`.
Values columns(const Values& all, std::int64_t width, std::int64_t begin, std::int64_t end) {
  Values part;
  for (std::size_t i = 0; i < all.size(); ++i)
    if (const auto column = static_cast<std::int64_t>(i) % width; column >= begin && column < end)
      part.push_back(all[i]);
  return part;
}

void check_whole(DType dtype, std::int64_t rows, std::int64_t width, std::int64_t offset, Activation activation,
                 Random& random) {
  SCOPED_TRACE(fmt::format("{} [{}, {}] at {}", name_of(dtype), rows, width, offset));
  Host host;
  const DType sums_dtype = accumulation_dtype(dtype);
  const Problem problem = make_problem(random, dtype, rows, width, activation);
  const Sliced x(host, dtype, width, offset, problem.x), gate(host, dtype, width, offset, problem.gate);
  const Sliced d_y(host, dtype, width, offset, problem.d_y), y(host, dtype, rows, width, offset);
  const Sliced d_x(host, dtype, rows, width, offset), d_gate(host, dtype, rows, width, offset);
  const Sliced again(host, dtype, rows, width, offset);
  const Tensor gain = host.tensor(dtype, {width}, problem.gain), inverse_rms = host.poisoned(sums_dtype, {rows});
  const Tensor d_gain = host.tensor(sums_dtype, {width}, Values(width, 1.0));
  gated_norm_forward(host.execution, x, host.tensor(sums_dtype, {rows, 1}, problem.square_sums), width, epsilon, gate,
                     activation, y, inverse_rms, gain);
  testing::expect_close(y, problem.expected.y, testing::tolerance_of(dtype), "y");
  gated_norm_backward(host.execution, d_y, x, inverse_rms, gate, activation, {}, width, d_x, d_gate, again, gain,
                      d_gain);
  EXPECT_EQ(testing::read(again.part), testing::read(y.part));
  // A single column is normed to 1: all but epsilon's part of its gradient cancels.
  testing::expect_close(d_x, problem.expected.d_x, gradient_tolerance(dtype) * (d_x.part.size(1) == 1 ? 10.0 : 1.0),
                        "d_x", 0.05);
  testing::expect_close(d_gate, problem.expected.d_gate, gradient_tolerance(dtype), "d_gate", 0.05);
  Values added = problem.expected.d_gain;
  for (double& value : added) value += 1.0;
  testing::expect_close(d_gain, added, dtype == DType::fp64 ? 1e-11 : 1e-4, "d_gain");
  for (const Sliced* written : {&y, &again, &d_x, &d_gate}) written->expect_margins_untouched();
  const Tensor d_gain_again = host.tensor(sums_dtype, {width}, Values(width, 1.0));
  gated_norm_backward(host.execution, d_y, x, inverse_rms, gate, activation, {}, width, d_y, gate, x, gain,
                      d_gain_again);
  EXPECT_EQ(testing::read(d_y.part), testing::read(d_x.part)) << "in place";
  EXPECT_EQ(testing::read(gate.part), testing::read(d_gate.part)) << "in place";
  EXPECT_EQ(testing::read(x.part), testing::read(y.part)) << "in place";
  EXPECT_EQ(testing::read(d_gain_again), testing::read(d_gain)) << "in place";
}

TEST(GatedNormGain, EqualsTheOracle) {
  Random random(79600);
  std::size_t turn = 0;
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t width : {3, 7, 64, 100, 1024, 5632})
      for (const std::int64_t offset : testing::slice_offsets)
        check_whole(dtype, testing::rows_for(width), width, offset, gates[turn++ % 3], random);
}

TEST(GatedNormGain, SplitOverRanksEqualsTheOracle) {
  Random random(79700);
  for (const DType dtype : testing::test_dtypes()) {
    for (const Activation activation : gates) {
      Host host;
      const DType sums_dtype = accumulation_dtype(dtype);
      const std::int64_t rows = 21, width = 72, half = width / 2;
      const Problem problem = make_problem(random, dtype, rows, width, activation);
      Values total(rows, 0.0);
      std::vector<Tensor> inverse_rms;
      const auto rank_tensor = [&](const Values& all, std::int64_t rank) {
        return host.tensor(dtype, {rows, half}, columns(all, width, rank * half, (rank + 1) * half));
      };
      const auto gain_of = [&](std::int64_t rank) {
        return host.tensor(dtype, {half}, columns(problem.gain, width, rank * half, (rank + 1) * half));
      };
      for (std::int64_t rank = 0; rank < 2; ++rank) {
        inverse_rms.push_back(host.poisoned(sums_dtype, {rows}));
        const Tensor y = host.poisoned(dtype, {rows, half}), dot = host.poisoned(sums_dtype, {rows});
        gated_norm_forward(host.execution, rank_tensor(problem.x, rank),
                           host.tensor(sums_dtype, {rows, 1}, problem.square_sums), width, epsilon,
                           rank_tensor(problem.gate, rank), activation, y, inverse_rms.back(), gain_of(rank));
        testing::expect_close(y, columns(problem.expected.y, width, rank * half, (rank + 1) * half),
                              testing::tolerance_of(dtype), "y");
        gated_norm_backward_dot(host.execution, rank_tensor(problem.d_y, rank), rank_tensor(problem.x, rank),
                                inverse_rms.back(), rank_tensor(problem.gate, rank), activation, dot, gain_of(rank));
        const Values share = testing::read(dot);
        for (std::int64_t row = 0; row < rows; ++row) total[row] += share[row];
      }
      for (std::int64_t rank = 0; rank < 2; ++rank) {
        const Tensor d_x = host.poisoned(dtype, {rows, half}), d_gate = host.poisoned(dtype, {rows, half});
        const Tensor d_gain = host.tensor(sums_dtype, {half}, Values(half, 0.0));
        gated_norm_backward(host.execution, rank_tensor(problem.d_y, rank), rank_tensor(problem.x, rank),
                            inverse_rms[rank], rank_tensor(problem.gate, rank), activation,
                            host.tensor(sums_dtype, {rows}, total), width, d_x, d_gate, {}, gain_of(rank), d_gain);
        const auto part = [&](const Values& all) { return columns(all, width, rank * half, (rank + 1) * half); };
        testing::expect_close(d_x, part(problem.expected.d_x), gradient_tolerance(dtype), "d_x", 0.05);
        testing::expect_close(d_gate, part(problem.expected.d_gate), gradient_tolerance(dtype), "d_gate", 0.05);
        testing::expect_close(d_gain, part(problem.expected.d_gain), dtype == DType::fp64 ? 1e-11 : 1e-4, "d_gain");
      }
    }
  }
}

}  // namespace
}  // namespace fulmen
