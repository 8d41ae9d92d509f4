// Linear attention backward: against the oracle's transposed products, and against finite differences of the kernel.
#include "framework/threads.h"
#include "kernels/linear_attention.h"
#include "tests/kernels/attention_cases.h"
#include "tests/kernels/attention_recurrence.h"

namespace fulmen {
namespace {

using testing::AttentionCase;
using testing::Host;
using testing::Layout;
using testing::Random;
using testing::Upstream;
using testing::Values;

TEST(LinearAttentionBackward, EqualsTheOracle) {
  std::uint64_t stream = 10000;
  for (const AttentionCase& c : testing::attention_cases()) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const Upstream upstream = testing::random_upstream(problem, dtype, stream % 3 != 0, random);
      const Values theta_before = random.normals(static_cast<std::int64_t>(problem.theta.size()));
      const auto expected = reference::linear_attention_backward(problem, upstream.d_output, upstream.d_final_state);
      const auto actual = testing::make_gradients(host, problem, dtype, c.layout, upstream, theta_before);
      linear_attention_backward(host.execution, testing::make_inputs(host, problem, dtype, c.layout), actual);
      const double tolerance = testing::tolerance_of(dtype);
      const std::string what = c.describe();
      testing::expect_close(actual.d_query, expected.d_query, tolerance, "d_query: " + what);
      testing::expect_close(actual.d_key, expected.d_key, tolerance, "d_key: " + what);
      testing::expect_close(actual.d_value, expected.d_value, tolerance, "d_value: " + what);
      testing::expect_close(actual.d_initial_state, expected.d_initial_state, tolerance, "d_initial_state: " + what);
      if (!c.lrpe) continue;
      const Values sum = testing::sum_of(expected.d_theta, theta_before);
      // A sum of terms that grow with the position and cancel: to a part of the result, or of the terms.
      if (dtype == DType::bf16) {
        const auto recurrence = testing::run_recurrence(problem, upstream);
        testing::expect_close(actual.d_theta, sum, 2e-2, "d_theta: " + what, recurrence.theta_terms);
      } else {
        testing::expect_close(actual.d_theta, sum, dtype == DType::fp64 ? tolerance : 1e-3, "d_theta: " + what);
      }
    }
  }
}

void expect_finite_differences(const AttentionCase& c, Random& random) {
  Host host;
  const auto problem = testing::random_problem(c, DType::fp64, random);
  const Upstream upstream = testing::random_upstream(problem, DType::fp64, true, random);
  const auto inputs = testing::make_inputs(host, problem, DType::fp64, c.layout);
  const auto outputs = testing::make_outputs(host, problem, DType::fp64, c.layout);
  const auto loss = [&] {
    linear_attention_forward(host.execution, inputs, outputs);
    return testing::weighted_sum(upstream.d_output, testing::read(outputs.output)) +
           testing::weighted_sum(upstream.d_final_state, testing::read(outputs.final_state));
  };
  const auto gradients =
      testing::make_gradients(host, problem, DType::fp64, c.layout, upstream, Values(problem.theta.size(), 0.0));
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
  expect_finite_differences({.batch = 2,
                             .length = 67,
                             .heads = 1,
                             .key_width = 2,
                             .value_width = 3,
                             .slope = 0.02,
                             .lrpe = true,
                             .initial_state = true,
                             .value_activation = Activation::silu},
                            random);
  expect_finite_differences({.batch = 2,
                             .length = 40,
                             .heads = 2,
                             .key_width = 3,
                             .value_width = 2,
                             .lrpe = true,
                             .initial_state = true,
                             .documents = true,
                             .layout = Layout::separate},
                            random);
  expect_finite_differences({.batch = 1,
                             .length = 9,
                             .heads = 3,
                             .key_width = 4,
                             .value_width = 5,
                             .slope = 1.0,
                             .initial_state = true,
                             .query_key_activation = Activation::sigmoid,
                             .value_activation = Activation::sigmoid},
                            random);
}

TEST(LinearAttentionBackward, ResultsDoNotDependOnTheThreads) {
  FULMEN_CPU_ONLY("about threads of the CPU");
  const int threads = compute_threads();
  const AttentionCase c{.batch = 3,
                        .length = 150,
                        .heads = 3,
                        .key_width = 33,
                        .value_width = 20,
                        .lrpe = true,
                        .initial_state = true,
                        .documents = true};
  Random random(30000);
  const auto problem = testing::random_problem(c, DType::fp32, random);
  const Upstream upstream = testing::random_upstream(problem, DType::fp32, true, random);
  std::vector<Values> results;
  for (const int count : {1, 2, 3, 1}) {
    set_compute_threads(count);
    Host host;
    const auto g = testing::make_gradients(host, problem, DType::fp32, Layout::ragged, upstream,
                                           Values(problem.theta.size(), 0.0));
    linear_attention_backward(host.execution, testing::make_inputs(host, problem, DType::fp32, Layout::ragged), g);
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
