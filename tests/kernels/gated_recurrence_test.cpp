// Gated recurrences: the recurrence, the form over pairs, the chunk form, decoding steps and slices are one function,
// with one gradient.
#include "tests/kernels/gated_recurrence_cases.h"

namespace fulmen {
namespace {

using testing::GatedCase;
using testing::Gates;
using testing::Host;
using testing::Random;
using testing::Values;

TEST(GatedRecurrence, FormOverPairsEqualsRecurrence) {
  std::uint64_t stream = 7000;
  for (const GatedCase& c : testing::gated_cases()) {
    if (c.length > 64) continue;  // work grows as the cube of the length
    Random random(++stream);
    const auto problem = testing::random_gated_problem(c, DType::fp64, random);
    testing::expect_close(reference::gated_recurrence_quadratic(problem),
                          reference::gated_recurrence_forward(problem).output, 1e-12, c.describe());
  }
}

TEST(GatedRecurrence, ChunkFormEqualsRecurrence) {
  std::uint64_t stream = 7100;
  for (const GatedCase& c : testing::gated_cases()) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const auto p = testing::random_gated_problem(c, dtype, random);
      const auto expected = reference::gated_recurrence_forward(p);
      const GatedRecurrenceOutputs outputs{testing::make_gated_heads(host, p, dtype, p.heads, p.value_width),
                                           host.poisoned(accumulation_dtype(dtype), testing::gated_state_shape(p))};
      gated_recurrence_forward(host.execution, testing::make_gated_inputs(host, p, dtype), outputs);
      const double tolerance = testing::gated_tolerance(dtype);
      testing::expect_close(outputs.output, expected.output, tolerance, "output: " + c.describe());
      testing::expect_close(outputs.final_state, expected.final_state, tolerance, "final_state: " + c.describe());
    }
  }
}

TEST(GatedRecurrence, GradientsEqualAdjointOfRecurrence) {
  std::uint64_t stream = 7200;
  for (const GatedCase& c : testing::gated_cases()) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const auto p = testing::random_gated_problem(c, dtype, random);
      const Values d_output = testing::rounded(random.normals(std::ssize(p.value)), dtype);
      const std::int64_t states = elements_of(testing::gated_state_shape(p));
      const Values d_final =
          random.integer(0, 1) == 0 ? Values() : testing::rounded(random.normals(states), accumulation_dtype(dtype));
      const GatedRecurrenceInputs inputs = testing::make_gated_inputs(host, p, dtype);
      const auto gradients = testing::make_gated_gradients(host, p, dtype, inputs, d_output, d_final);
      gated_recurrence_backward(host.execution, inputs, gradients);
      testing::expect_gradients(gradients, reference::gated_recurrence_backward(p, d_output, d_final),
                                testing::gated_tolerance(dtype), c.describe());
    }
  }
}

// The oracle's own gradients, of every gate.
TEST(GatedRecurrence, AdjointEqualsFiniteDifferences) {
  FULMEN_CPU_ONLY("the oracle runs on the host");
  std::uint64_t stream = 7300;
  for (const bool per_channel : {false, true})
    for (const int rule : {0, 1, 2}) {
      const GatedCase c{.batch = 2,
                        .length = 5,
                        .key_heads = 2,
                        .group = 2,
                        .key_width = 3,
                        .value_width = 2,
                        .per_channel = per_channel,
                        .delta = rule == 1,
                        .bonus = rule == 2,
                        .initial_state = true,
                        .documents = true};
      Random random(++stream);
      auto p = testing::random_gated_problem(c, DType::fp64, random);
      const Values d_output = random.normals(std::ssize(p.value)),
                   d_final = random.normals(std::ssize(p.initial_state));
      const auto expected = reference::gated_recurrence_backward(p, d_output, d_final);
      const auto check = [&](Values& x, const Values& gradient, const char* what) {
        const Tensor whole(x.data(), DType::fp64, {std::ssize(x)}, Device::cpu());
        const Values differences = testing::finite_differences(whole, 1e-3, [&] {
          const auto result = reference::gated_recurrence_forward(p);
          return testing::weighted_sum(d_output, result.output) + testing::weighted_sum(d_final, result.final_state);
        });
        testing::expect_close(gradient, differences, 1e-9, std::string(what) + ": " + c.describe());
      };
      check(p.query, expected.d_query, "query"), check(p.key, expected.d_key, "key");
      check(p.value, expected.d_value, "value"), check(p.log_decay, expected.d_log_decay, "log_decay");
      check(p.beta, expected.d_beta, "beta"), check(p.bonus, expected.d_bonus, "bonus");
      check(p.initial_state, expected.d_initial_state, "initial_state");
    }
}

TEST(GatedRecurrence, StepsEqualRecurrence) {
  std::uint64_t stream = 7400;
  for (const GatedCase& c : testing::gated_cases()) {
    if (c.documents) continue;
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const auto p = testing::random_gated_problem(c, dtype, random);
      const auto expected = reference::gated_recurrence_forward(p);
      const DType wide = accumulation_dtype(dtype);
      const Tensor state = host.tensor(
          wide, testing::gated_state_shape(p),
          p.initial_state.empty() ? Values(elements_of(testing::gated_state_shape(p)), 0.0) : p.initial_state);
      const GatedRecurrenceInputs inputs = testing::make_gated_inputs(host, p, dtype);
      const Tensor output = testing::make_gated_heads(host, p, dtype, p.heads, p.value_width);
      for (std::int64_t t = 0; t < p.length; ++t) {
        const auto token = [&](const Tensor& x) { return x ? x.slice(1, t, t + 1) : x; };
        const auto contiguous = [&](const Tensor& x) {
          return x ? host.tensor(wide, token(x).shape(), testing::read(token(x))) : x;
        };
        GatedRecurrenceInputs step = inputs;
        step.query = token(inputs.query), step.key = token(inputs.key), step.value = token(inputs.value);
        step.log_decay = contiguous(inputs.log_decay), step.beta = contiguous(inputs.beta);
        gated_recurrence_step(host.execution, step, state, token(output));
      }
      const double tolerance = testing::gated_tolerance(dtype);
      testing::expect_close(output, expected.output, tolerance, "output: " + c.describe());
      testing::expect_close(state, expected.final_state, tolerance, "state: " + c.describe());
    }
  }
}

}  // namespace
}  // namespace fulmen
