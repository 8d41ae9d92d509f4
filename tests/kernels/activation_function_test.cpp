// The activation after a bias: against the oracle, against finite differences, strided, in place, at extreme arguments.
#include "kernels/activation_function.h"

#include "kernels/gated_linear_unit.h"
#include "kernels/reference/activation.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/wide_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Sliced;
using testing::Values;

constexpr Activation activations[] = {Activation::none, Activation::silu, Activation::sigmoid, Activation::gelu_tanh,
                                      Activation::squared_relu};

struct Expected {
  Values y, d_x, d_bias;
};

Expected oracle(const Values& d_y, const Values& x, const Values& bias, Activation activation, std::int64_t width) {
  Expected expected{Values(x.size()), Values(x.size()), Values(width, 0.0)};
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double argument = x[i] + (bias.empty() ? 0.0 : bias[i % width]);
    expected.y[i] = reference::activate(activation, argument);
    expected.d_x[i] = d_y[i] * reference::activation_derivative(activation, argument);
    expected.d_bias[i % width] += expected.d_x[i];
  }
  return expected;
}

void check(DType dtype, std::int64_t rows, std::int64_t width, std::int64_t offset, Activation activation, bool biased,
           Random& random) {
  SCOPED_TRACE(fmt::format("{} [{}, {}] at {}, activation {}", name_of(dtype), rows, width, offset,
                           static_cast<int>(activation)));
  Host host;
  const double tolerance = testing::tolerance_of(dtype);
  const auto values = [&] { return testing::rounded(random.normals(rows * width, 2.0), dtype); };
  const Values x = values(), d_y = values();
  const Values bias = biased ? testing::rounded(random.normals(width), dtype) : Values();
  const Expected expected = oracle(d_y, x, bias, activation, width);
  const Sliced xs(host, dtype, width, offset, x), d_ys(host, dtype, width, offset, d_y);
  const Sliced y(host, dtype, rows, width, offset), again(host, dtype, rows, width, offset);
  const Sliced d_x(host, dtype, rows, width, offset);
  const Tensor biases = biased ? host.tensor(dtype, {width}, bias) : Tensor();
  const Tensor sums = biased ? host.tensor(accumulation_dtype(dtype), {width}, Values(width, 1.0)) : Tensor();
  activation_function_forward(host.execution, xs, biases, activation, y);
  testing::expect_close(y, expected.y, tolerance, "y");
  activation_function_backward(host.execution, d_ys, xs, biases, activation, d_x, sums, again);
  testing::expect_close(d_x, expected.d_x, tolerance, "d_x");
  EXPECT_EQ(testing::read(again.part), testing::read(y.part));
  if (biased) {
    Values added = expected.d_bias;
    for (double& value : added) value += 1.0;
    // Rounding grows with the number of terms.
    testing::expect_close(sums, added, (dtype == DType::fp64 ? 1e-12 : 1e-5) * std::sqrt(double(rows)), "d_bias");
    const Tensor alone = host.tensor(accumulation_dtype(dtype), {width}, Values(width, 1.0));
    activation_function_backward(host.execution, d_ys, xs, biases, activation, {}, alone, {});
    // The compiler may round the products of either loop apart from their sums, or with them.
    testing::expect_close(alone, testing::read(sums), testing::tolerance_of(accumulation_dtype(dtype)), "bias alone");
  }
  activation_function_backward(host.execution, d_ys, xs, biases, activation, xs, {}, d_ys);
  EXPECT_EQ(testing::read(xs.part), testing::read(d_x.part)) << "in place";
  EXPECT_EQ(testing::read(d_ys.part), testing::read(y.part)) << "in place";
  for (const Sliced* written : {&y, &again, &d_x, &xs, &d_ys}) written->expect_margins_untouched();
}

TEST(ActivationFunction, EqualsTheOracleAtEveryWidthAndAlignment) {
  Random random(85000);
  for (const DType dtype : testing::test_dtypes())
    for (const std::int64_t width : {1, 7, 64, 100, 1024, 5632})
      for (const std::int64_t offset : testing::slice_offsets)
        for (const Activation activation : activations)
          check(dtype, testing::rows_for(width), width, offset, activation, (width + offset) % 2 == 0, random);
}

TEST(ActivationFunction, ManyRows) {
  Random random(85500);
  for (const DType dtype : testing::test_dtypes())
    check(dtype, testing::many_rows, 8, 0, Activation::gelu_tanh, true, random);
}

TEST(ActivationFunction, BackwardEqualsFiniteDifferences) {
  Random random(86000);
  for (const Activation activation : activations) {
    Host host;
    const Values d_y = random.normals(35);
    const Tensor x = host.tensor(DType::fp64, {5, 7}, random.normals(35));
    const Tensor bias = host.tensor(DType::fp64, {7}, random.normals(7));
    const Tensor y = host.poisoned(DType::fp64, {5, 7}), d_x = host.poisoned(DType::fp64, {5, 7});
    const Tensor d_bias = host.tensor(DType::fp64, {7}, Values(7, 0.0));
    const auto loss = [&] {
      activation_function_forward(host.execution, x, bias, activation, y);
      return testing::weighted_sum(d_y, testing::read(y));
    };
    activation_function_backward(host.execution, host.tensor(DType::fp64, {5, 7}, d_y), x, bias, activation, d_x,
                                 d_bias, {});
    // The second derivative of a squared ReLU jumps at 0, where five points do not see a polynomial.
    const double tolerance = activation == Activation::squared_relu ? 1e-4 : 1e-8;
    testing::expect_close(d_x, testing::finite_differences(x, 1e-4, loss), tolerance, "d_x");
    testing::expect_close(d_bias, testing::finite_differences(bias, 1e-4, loss), tolerance, "d_bias");
  }
}

TEST(ActivationFunction, ABiasAloneNeedsNoArgument) {
  Host host;
  const Tensor bias = host.tensor(DType::fp64, {2}, {1, 2}), sums = host.tensor(DType::fp64, {2}, {0, 10});
  const Tensor d_y = host.tensor(DType::fp64, {3, 2}, {1, 2, 3, 4, 5, 6});
  activation_function_backward(host.execution, d_y, {}, bias, Activation::none, {}, sums, {});
  EXPECT_EQ(testing::read(sums), Values({9, 22}));
  EXPECT_THROW(activation_function_backward(host.execution, d_y, {}, bias, Activation::silu, {}, sums, {}),
               InternalError);
}

TEST(ActivationFunction, ExtremeArgumentsStayFiniteAndNaNPasses) {
  const Values xs = {-1e4, -200, -88, -20, -1, 0, 1, 20, 88, 200, 1e4};
  const auto count = static_cast<std::int64_t>(xs.size());
  for (const DType dtype : testing::test_dtypes()) {
    for (const Activation activation : activations) {
      Host host;
      const Values rounded = testing::rounded(xs, dtype), ones(xs.size(), 1.0);
      const Tensor x = host.tensor(dtype, {1, count}, rounded), d_y = host.tensor(dtype, {1, count}, ones);
      const Tensor y = host.poisoned(dtype, {1, count}), d_x = host.poisoned(dtype, {1, count});
      activation_function_backward(host.execution, d_y, x, {}, activation, d_x, {}, y);
      const Expected expected = oracle(ones, rounded, {}, activation, count);
      testing::expect_close(y, expected.y, testing::tolerance_of(dtype), "y");
      testing::expect_close(d_x, expected.d_x, testing::tolerance_of(dtype), "d_x");
      const Tensor nan = host.poisoned(dtype, {1, 16}), out = host.tensor(dtype, {1, 16}, Values(16, 1.0));
      activation_function_forward(host.execution, nan, {}, activation, out);
      for (const double value : testing::read(out)) EXPECT_TRUE(std::isnan(value));
    }
  }
}

TEST(ActivationFunction, GatesRefuseWhatTheyDoNotKnow) {
  Host host;
  const Tensor a = host.tensor(DType::fp64, {1, 2}, {1, 2}), y = host.poisoned(DType::fp64, {1, 2});
  EXPECT_THROW(gated_linear_unit_forward(host.execution, a, a, Activation::gelu_tanh, y), InternalError);
  EXPECT_THROW(gated_linear_unit_forward(host.execution, a, a, Activation::squared_relu, y), InternalError);
}

}  // namespace
}  // namespace fulmen
