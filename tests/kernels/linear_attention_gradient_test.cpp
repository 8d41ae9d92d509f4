// Linear attention backward: against the oracle's transposed products, and against finite differences of the kernel.
#include "framework/threads.h"
#include "kernels/linear_attention.h"
#include "tests/kernels/attention_cases.h"

namespace fulmen {
namespace {

using testing::AttentionCase;
using testing::Host;
using testing::Random;
using testing::Values;

struct Upstream {
  Values d_output, d_final_state;
};

Upstream random_upstream(const reference::LinearAttentionProblem& p, DType dtype, bool final_state, Random& random) {
  Upstream upstream;
  upstream.d_output = testing::rounded(random.normals(p.batch * p.length * p.heads * p.value_width), dtype);
  if (final_state)
    upstream.d_final_state = testing::rounded(random.normals(elements_of(testing::state_shape(p))), dtype);
  return upstream;
}

// Strided outputs, all poisoned but d_theta, which is added to.
LinearAttentionGradients make_gradients(Host& host, const reference::LinearAttentionProblem& p, DType dtype, bool fused,
                                        const Upstream& upstream, const Values& theta_before) {
  LinearAttentionGradients gradients;
  const Tensor rows = host.poisoned(dtype, {p.batch * p.length, p.heads * p.value_width + 3});
  gradients.d_output = testing::heads_of(rows, 2, p.length, p.heads, p.value_width);
  testing::write(gradients.d_output, upstream.d_output);
  if (!upstream.d_final_state.empty())
    gradients.d_final_state = host.tensor(dtype, testing::state_shape(p), upstream.d_final_state);
  const auto triple = testing::make_triple(host, p, dtype, fused);
  gradients.d_query = triple.query, gradients.d_key = triple.key, gradients.d_value = triple.value;
  if (!p.theta.empty()) gradients.d_theta = host.tensor(DType::fp64, {p.heads, p.key_width}, theta_before);
  gradients.d_initial_state = host.poisoned(dtype, testing::state_shape(p));
  return gradients;
}

TEST(LinearAttentionBackward, EqualsTheOracle) {
  std::uint64_t stream = 10000;
  for (const AttentionCase& c : testing::attention_cases()) {
    for (const DType dtype : {DType::fp64, DType::fp32}) {
      Random random(++stream);
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const Upstream upstream = random_upstream(problem, dtype, stream % 3 != 0, random);
      const Values theta_before = random.normals(static_cast<std::int64_t>(problem.theta.size()));
      const auto expected = reference::linear_attention_backward(problem, upstream.d_output, upstream.d_final_state);
      const auto actual = make_gradients(host, problem, dtype, c.fused, upstream, theta_before);
      linear_attention_backward(host.execution, testing::make_inputs(host, problem, dtype, c.fused), actual);
      const double tolerance = testing::tolerance_of(dtype);
      const std::string what = c.describe();
      testing::expect_close(actual.d_query, expected.d_query, tolerance, "d_query: " + what);
      testing::expect_close(actual.d_key, expected.d_key, tolerance, "d_key: " + what);
      testing::expect_close(actual.d_value, expected.d_value, tolerance, "d_value: " + what);
      testing::expect_close(actual.d_initial_state, expected.d_initial_state, tolerance, "d_initial_state: " + what);
      if (!c.lrpe) continue;
      Values sum = expected.d_theta;
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += theta_before[i];
      // A sum of terms that grow with the position and cancel.
      testing::expect_close(actual.d_theta, sum, dtype == DType::fp64 ? tolerance : 1e-3, "d_theta: " + what);
    }
  }
}

void expect_finite_differences(const AttentionCase& c, Random& random) {
  Host host;
  const auto problem = testing::random_problem(c, DType::fp64, random);
  const Upstream upstream = random_upstream(problem, DType::fp64, true, random);
  const auto inputs = testing::make_inputs(host, problem, DType::fp64, c.fused);
  const auto outputs = testing::make_outputs(host, problem, DType::fp64, c.fused);
  const auto loss = [&] {
    linear_attention_forward(host.execution, inputs, outputs);
    return testing::weighted_sum(upstream.d_output, testing::read(outputs.output)) +
           testing::weighted_sum(upstream.d_final_state, testing::read(outputs.final_state));
  };
  const auto gradients =
      make_gradients(host, problem, DType::fp64, c.fused, upstream, Values(problem.theta.size(), 0.0));
  linear_attention_backward(host.execution, inputs, gradients);
  const auto check = [&](const Tensor& gradient, const Tensor& input, double step, const char* name) {
    if (!input) return;
    const Values expected = testing::finite_differences(input, step, loss);
    testing::expect_close(gradient, expected, 1e-8, name + (": " + c.describe()));
  };
  check(gradients.d_query, inputs.query, 1e-3, "d_query");
  check(gradients.d_key, inputs.key, 1e-3, "d_key");
  check(gradients.d_value, inputs.value, 1e-3, "d_value");
  check(gradients.d_initial_state, inputs.initial_state, 1e-3, "d_initial_state");
  check(gradients.d_theta, inputs.theta, 2e-5, "d_theta");
}

TEST(LinearAttentionBackward, EqualsFiniteDifferences) {
  Random random(20000);
  expect_finite_differences({.batch = 1, .length = 70, .heads = 2, .key_width = 3, .value_width = 2}, random);
  expect_finite_differences({.batch = 2, .length = 67, .heads = 1, .key_width = 2, .value_width = 3, .slope = 0.02,
                             .lrpe = true, .initial_state = true, .value_activation = Activation::silu},
                            random);
  expect_finite_differences({.batch = 2, .length = 40, .heads = 2, .key_width = 3, .value_width = 2, .lrpe = true,
                             .initial_state = true, .documents = true, .fused = false},
                            random);
  expect_finite_differences({.batch = 1, .length = 9, .heads = 3, .key_width = 4, .value_width = 5, .slope = 1.0,
                             .initial_state = true, .query_key_activation = Activation::sigmoid,
                             .value_activation = Activation::sigmoid},
                            random);
}

TEST(LinearAttentionBackward, ResultsDoNotDependOnTheThreads) {
  const int threads = compute_threads();
  const AttentionCase c{.batch = 3, .length = 150, .heads = 3, .key_width = 33, .value_width = 20, .lrpe = true,
                        .initial_state = true, .documents = true};
  Random random(30000);
  const auto problem = testing::random_problem(c, DType::fp32, random);
  const Upstream upstream = random_upstream(problem, DType::fp32, true, random);
  std::vector<Values> results;
  for (const int count : {1, 2, 3, 1}) {
    set_compute_threads(count);
    Host host;
    const auto g = make_gradients(host, problem, DType::fp32, true, upstream, Values(problem.theta.size(), 0.0));
    linear_attention_backward(host.execution, testing::make_inputs(host, problem, DType::fp32, true), g);
    Values all;
    for (const Tensor& x : {g.d_query, g.d_key, g.d_value, g.d_theta, g.d_initial_state})
      for (const double value : testing::read(x)) all.push_back(value);
    EXPECT_TRUE(std::all_of(all.begin(), all.end(), [](double x) { return std::isfinite(x); }));
    results.push_back(all);
  }
  set_compute_threads(threads);
  for (const Values& other : results) EXPECT_EQ(other, results[0]);
}

}  // namespace
}  // namespace fulmen
