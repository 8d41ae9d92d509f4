// Norms with a gain, with and without a bias: against the oracle and finite differences, strided and in place. Also the
// sums over tokens of their weights' gradients.
#include "framework/threads.h"
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

constexpr double epsilon = 1e-5;
constexpr NormKind kinds[] = {NormKind::rms, NormKind::zero_centred, NormKind::layer};

const char* name(NormKind kind) {
  return kind == NormKind::rms ? "rms" : kind == NormKind::zero_centred ? "zero-centred" : "layer";
}

// A norm's weights and gradients on the device, and what they hold.
struct Weights {
  Values gain, bias, before;  // before: what the gradients hold before a pass adds to them
  NormWeights weights;
  NormWeightGradients gradients;

  Weights(Host& host, NormKind kind, DType dtype, std::int64_t width, Random& random)
      : gain(testing::rounded(random.normals(width), dtype)), bias(testing::rounded(random.normals(width), dtype)) {
    const DType sums = accumulation_dtype(dtype);
    before = testing::rounded(random.normals(width), sums);
    weights = {kind, host.tensor(dtype, {width}, gain), {}};
    gradients.d_gain = host.tensor(sums, {width}, before);
    if (kind != NormKind::layer) return;
    weights.bias = host.tensor(dtype, {width}, bias);
    gradients.d_bias = host.tensor(sums, {width}, before);
  }
};

Values plus(Values a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// Two columns or fewer leave of a LayerNorm's gradient only what cancels to epsilon's share.
double gradient_tolerance(DType dtype, std::int64_t width) {
  const double computed = testing::tolerance_of(accumulation_dtype(dtype)) * (width <= 2 ? 1e6 : 1.0);
  return std::max(testing::tolerance_of(dtype), computed);
}

void check(NormKind kind, DType dtype, std::int64_t rows, std::int64_t width, std::int64_t offset, bool branch,
           Random& random) {
  SCOPED_TRACE(fmt::format("{} {} [{}, {}] at {}", name(kind), name_of(dtype), rows, width, offset));
  Host host;
  const double tolerance = testing::tolerance_of(dtype);
  const auto values = [&](double factor) { return testing::rounded(random.normals(rows * width, factor), dtype); };
  Values residual = values(1.0);
  // About a mean that is not zero, and never close to each other: a LayerNorm divides by how far they lie apart.
  for (std::size_t i = 0; i < residual.size(); ++i)
    residual[i] = i % width % 2 == 0 ? 2.5 + std::abs(residual[i]) : 1.5 - std::abs(residual[i]);
  residual = testing::rounded(residual, dtype);
  const Values added = values(branch ? 0.1 : 0.0), d_y = values(1.0), past = values(branch ? 1.0 : 0.0);
  const Values total = testing::rounded(plus(residual, added), dtype);
  const Weights own(host, kind, dtype, width, random);
  const Sliced residuals(host, dtype, width, offset, residual), branches(host, dtype, width, offset, added);
  const Sliced sums(host, dtype, rows, width, offset), normed(host, dtype, rows, width, offset);
  const Tensor statistics = host.poisoned(accumulation_dtype(dtype), {rows, statistics_of(kind)});
  weighted_norm_forward(host.execution, residuals, branch ? branches.part : Tensor(), own.weights, epsilon,
                        branch ? sums.part : Tensor(), normed, statistics);
  normed.expect_margins_untouched();
  testing::expect_close(normed, reference::norm(total, kind, own.gain, own.bias, width, epsilon), tolerance, "normed");
  if (branch) {
    EXPECT_EQ(testing::read(sums.part), total);
    sums.expect_margins_untouched();
  }
  const Tensor& sum = branch ? sums.part : residuals.part;

  const Sliced d_ys(host, dtype, width, offset, d_y), pasts(host, dtype, width, offset, past);
  const Sliced d_sum(host, dtype, rows, width, offset), again(host, dtype, rows, width, offset);
  const Tensor& d_residual = branch ? pasts.part : Tensor();
  weighted_norm_backward(host.execution, d_ys, sum, own.weights, statistics, d_residual, d_sum, again, own.gradients);
  for (const Sliced* written : {&d_sum, &again}) written->expect_margins_untouched();
  EXPECT_EQ(testing::read(again.part), testing::read(normed.part));
  const auto expected = reference::norm_backward(total, kind, own.gain, d_y, width, epsilon);
  testing::expect_close(d_sum, plus(expected.d_x, past), gradient_tolerance(dtype, width), "d_sum");
  const double of_sums = 4 * testing::tolerance_of(accumulation_dtype(dtype));
  testing::expect_close(own.gradients.d_gain, plus(expected.d_gain, own.before), of_sums, "d_gain");
  if (own.weights.bias)
    testing::expect_close(own.gradients.d_bias, plus(expected.d_bias, own.before), of_sums, "d_bias");
  // In place, and again onto the gradients of the weights.
  const Sliced &target = branch ? pasts : d_ys, &normed_again = branch ? d_ys : again;
  weighted_norm_backward(host.execution, d_ys, sum, own.weights, statistics, d_residual, target, normed_again,
                         own.gradients);
  EXPECT_EQ(testing::read(target.part), testing::read(d_sum.part)) << "in place";
  EXPECT_EQ(testing::read(normed_again.part), testing::read(normed.part)) << "in place";
  const Values twice = plus(plus(expected.d_gain, expected.d_gain), own.before);
  testing::expect_close(own.gradients.d_gain, twice, of_sums, "d_gain of two passes");
}

TEST(WeightedNorm, EqualsTheOracleAtEveryWidthAndAlignment) {
  Random random(120000);
  bool branch = false;
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t width : {2, 3, 7, 8, 64, 100, 512})
      for (const std::int64_t offset : testing::slice_offsets)
        for (const NormKind kind : kinds)
          check(kind, dtype, random.integer(1, 90), width, offset, branch = !branch, random);
}

// Rows that do not fit in a GPU's registers, against the oracle where its square of the width is bearable.
TEST(WeightedNorm, WideRows) {
  Random random(120500);
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t width : {2048, 5632})
      for (const NormKind kind : kinds) check(kind, dtype, 1, width, width == 2048 ? 0 : 1, true, random);
}

// Many rows: the rows of a block are summed by themselves.
TEST(WeightedNorm, ManyRows) {
  Random random(121000);
  for (const DType dtype : testing::test_dtypes())
    for (const NormKind kind : kinds) check(kind, dtype, 20011, 8, 0, true, random);
}

TEST(WeightedNorm, BackwardEqualsFiniteDifferences) {
  Random random(121500);
  for (const NormKind kind : kinds) {
    SCOPED_TRACE(name(kind));
    Host host;
    const Shape shape{4, 9};
    const Values d_y = random.normals(36);
    const Tensor x = host.tensor(DType::fp64, shape, random.normals(36)), normed = host.poisoned(DType::fp64, shape);
    const Weights own(host, kind, DType::fp64, 9, random);
    const Tensor statistics = host.poisoned(DType::fp64, {4, statistics_of(kind)});
    const Tensor d_x = host.poisoned(DType::fp64, shape);
    const auto loss = [&] {
      weighted_norm_forward(host.execution, x, {}, own.weights, epsilon, {}, normed, statistics);
      return testing::weighted_sum(d_y, testing::read(normed));
    };
    loss();
    weighted_norm_backward(host.execution, host.tensor(DType::fp64, shape, d_y), x, own.weights, statistics, {}, d_x,
                           {}, own.gradients);
    testing::expect_close(d_x, testing::finite_differences(x, 1e-3, loss), 1e-8, "d_x");
    const auto differences = [&](const Tensor& weight) {
      return plus(testing::finite_differences(weight, 1e-3, loss), own.before);
    };
    testing::expect_close(own.gradients.d_gain, differences(own.weights.gain), 1e-8, "d_gain");
    if (kind == NormKind::layer)
      testing::expect_close(own.gradients.d_bias, differences(own.weights.bias), 1e-8, "d_bias");
  }
}

// The kind without weights is the pass that has always been, bit for bit.
TEST(WeightedNorm, SimpleIsTheNormWithoutWeights) {
  Random random(122000);
  Host host;
  const Tensor x = host.tensor(DType::fp32, {7, 33}, random.normals(7 * 33));
  const Tensor d_y = host.tensor(DType::fp32, {7, 33}, random.normals(7 * 33));
  const auto output = [&] { return host.poisoned(DType::fp32, {7, 33}); };
  const Tensor normed = output(), plain = output(), d_x = output(), d_plain = output();
  const Tensor statistics = host.poisoned(DType::fp32, {7, 1}), inverse_rms = host.poisoned(DType::fp32, {7});
  weighted_norm_forward(host.execution, x, {}, NormWeights{}, epsilon, {}, normed, statistics);
  residual_norm_forward(host.execution, x, {}, epsilon, {}, plain, inverse_rms);
  weighted_norm_backward(host.execution, d_y, x, NormWeights{}, statistics, {}, d_x, {}, {});
  residual_norm_backward(host.execution, d_y, x, inverse_rms, {}, d_plain, {});
  EXPECT_EQ(testing::read(normed), testing::read(plain));
  EXPECT_EQ(testing::read(d_x), testing::read(d_plain));
}

TEST(WeightedNorm, ResultsDoNotDependOnTheThreads) {
  const int threads = compute_threads();
  const std::int64_t rows = 1500, width = 130;
  for (const NormKind kind : kinds) {
    std::vector<Values> results;
    for (const int count : {1, 2, 3, 1}) {
      set_compute_threads(count);
      Random random(122500);
      Host host;
      const Tensor x = host.tensor(DType::fp32, {rows, width}, random.normals(rows * width));
      const Tensor d_y = host.tensor(DType::fp32, {rows, width}, random.normals(rows * width));
      const Weights own(host, kind, DType::fp32, width, random);
      const Tensor normed = host.poisoned(DType::fp32, {rows, width}), d_x = host.poisoned(DType::fp32, {rows, width});
      const Tensor statistics = host.poisoned(DType::fp32, {rows, statistics_of(kind)});
      weighted_norm_forward(host.execution, x, {}, own.weights, epsilon, {}, normed, statistics);
      weighted_norm_backward(host.execution, d_y, x, own.weights, statistics, {}, d_x, {}, own.gradients);
      Values all;
      for (const Tensor& t : {normed, statistics, d_x, own.gradients.d_gain, own.gradients.d_bias})
        for (const double value : testing::read(t)) all.push_back(value);
      results.push_back(all);
    }
    for (const Values& other : results) EXPECT_EQ(other, results[0]) << name(kind);
  }
  set_compute_threads(threads);
}

TEST(WeightedNorm, RefusesWeightsThatDoNotFit) {
  Host host;
  const Tensor x = host.poisoned(DType::fp32, {4, 6}), gain = host.poisoned(DType::fp32, {6});
  const Tensor statistics = host.poisoned(DType::fp32, {4, 1});
  const auto forward = [&](const NormWeights& weights) {
    weighted_norm_forward(host.execution, x, {}, weights, epsilon, {}, x, statistics);
  };
  EXPECT_THROW(forward({NormKind::rms, {}, {}}), InternalError);
  EXPECT_THROW(forward({NormKind::rms, gain, gain}), InternalError);
  EXPECT_THROW(forward({NormKind::simple, gain, {}}), InternalError);
  EXPECT_THROW(forward({NormKind::layer, gain, gain}), InternalError) << "it has two statistics";
  EXPECT_THROW(forward({NormKind::rms, host.poisoned(DType::fp32, {5}), {}}), InternalError);
}

}  // namespace
}  // namespace fulmen
