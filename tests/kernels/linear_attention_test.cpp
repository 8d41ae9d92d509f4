// Linear attention forward: the chunk form, the recurrent form and the quadratic oracle are one function.
#include "kernels/linear_attention.h"

#include "framework/threads.h"
#include "tests/kernels/attention_cases.h"

namespace fulmen {
namespace {

using testing::AttentionCase;
using testing::Host;
using testing::Random;
using testing::Values;

TEST(LinearAttention, ChunkFormEqualsQuadraticForm) {
  std::uint64_t stream = 0;
  for (const AttentionCase& c : testing::attention_cases()) {
    for (const DType dtype : {DType::fp64, DType::fp32}) {
      Random random(++stream);
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const auto expected = reference::linear_attention_forward(problem);
      const auto outputs = testing::make_outputs(host, problem, dtype, c.fused);
      linear_attention_forward(host.execution, testing::make_inputs(host, problem, dtype, c.fused), outputs);
      const double tolerance = testing::tolerance_of(dtype);
      testing::expect_close(outputs.output, expected.output, tolerance, "output: " + c.describe());
      testing::expect_close(outputs.square_sums, expected.square_sums, tolerance, "square_sums: " + c.describe());
      testing::expect_close(outputs.final_state, expected.final_state, tolerance, "final_state: " + c.describe());
    }
  }
}

// Token by token; the state is cleared where a document starts.
Values recurrent_output(Host& host, const reference::LinearAttentionProblem& p, DType dtype, const Tensor& state,
                        const LinearAttentionInputs& inputs, Values& square_sums) {
  const Tensor output = host.poisoned(dtype, {p.batch, p.length, p.heads, p.value_width});
  square_sums.assign(p.batch * p.length * p.heads, 0.0);
  for (std::int64_t row = 0; row < p.batch; ++row) {
    for (std::int64_t t = 0; t < p.length; ++t) {
      const auto token = [&](const Tensor& x) { return x.slice(0, row, row + 1).slice(1, t, t + 1); };
      const Tensor own_state = state.slice(0, row, row + 1);
      const bool starts = std::count(p.segments.begin(), p.segments.end(), row * p.length + t) > 0;
      if (starts && t > 0) testing::write(own_state, Values(own_state.elements(), 0.0));
      LinearAttentionInputs step = inputs;
      step.query = token(inputs.query), step.key = token(inputs.key), step.value = token(inputs.value);
      if (inputs.theta) step.positions = token(inputs.positions);
      step.initial_state = Tensor();
      const Tensor squares = host.poisoned(dtype, {1, p.heads});
      linear_attention_step(host.execution, step, own_state, {token(output), squares, Tensor()});
      const Values read = testing::read(squares);
      std::copy(read.begin(), read.end(), square_sums.begin() + (row * p.length + t) * p.heads);
    }
  }
  return testing::read(output);
}

TEST(LinearAttention, RecurrentFormEqualsQuadraticForm) {
  std::uint64_t stream = 1000;
  for (const AttentionCase& c : testing::attention_cases()) {
    for (const DType dtype : {DType::fp64, DType::fp32}) {
      Random random(++stream);
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const auto expected = reference::linear_attention_forward(problem);
      const Shape shape = testing::state_shape(problem);
      const Tensor state = host.tensor(
          dtype, shape, problem.initial_state.empty() ? Values(elements_of(shape), 0.0) : problem.initial_state);
      Values square_sums;
      const Values output = recurrent_output(host, problem, dtype, state,
                                             testing::make_inputs(host, problem, dtype, c.fused), square_sums);
      const double tolerance = testing::tolerance_of(dtype);
      testing::expect_close(output, expected.output, tolerance, "output: " + c.describe());
      testing::expect_close(square_sums, expected.square_sums, tolerance, "square_sums: " + c.describe());
      testing::expect_close(state, expected.final_state, tolerance, "state: " + c.describe());
    }
  }
}

// Two halves of a row, the first's final state being the second's initial state.
TEST(LinearAttention, StateCarriesARowAcrossCalls) {
  Random random(2000);
  for (const std::int64_t cut : {1, 63, 64, 70, 129}) {
    Host host;
    const AttentionCase c{.batch = 2, .length = 130, .heads = 2, .key_width = 16, .value_width = 24, .lrpe = true};
    const auto problem = testing::random_problem(c, DType::fp64, random);
    const auto expected = reference::linear_attention_forward(problem);
    const auto whole = testing::make_inputs(host, problem, DType::fp64, true);
    const Tensor output = host.poisoned(DType::fp64, {2, 130, 2, 24});
    const Tensor middle = host.poisoned(DType::fp64, testing::state_shape(problem));
    const Tensor last = host.poisoned(DType::fp64, testing::state_shape(problem));
    const auto part = [&](std::int64_t begin, std::int64_t end, const Tensor& from, const Tensor& to) {
      LinearAttentionInputs inputs = whole;
      inputs.query = whole.query.slice(1, begin, end);
      inputs.key = whole.key.slice(1, begin, end);
      inputs.value = whole.value.slice(1, begin, end);
      inputs.positions = whole.positions.slice(1, begin, end);
      inputs.segments = Tensor();
      inputs.initial_state = from;
      linear_attention_forward(host.execution, inputs, {output.slice(1, begin, end), Tensor(), to});
    };
    part(0, cut, Tensor(), middle);
    part(cut, 130, middle, last);
    testing::expect_close(output, expected.output, 1e-12, fmt::format("cut at {}", cut));
    testing::expect_close(last, expected.final_state, 1e-12, fmt::format("final state, cut at {}", cut));
  }
}

// Angles of positions far out, where fp32 would have lost the phase, and beyond what the fast reduction takes.
TEST(LinearAttention, LrpeAtFarPositions) {
  for (const std::int64_t first : {131072L, 999990L, 50000000L}) {
    for (const DType dtype : {DType::fp64, DType::fp32}) {
      Random random(3000);
      Host host;
      const AttentionCase c{.length = 70, .key_width = 8, .value_width = 8, .lrpe = true};
      auto problem = testing::random_problem(c, dtype, random);
      for (std::int64_t t = 0; t < c.length; ++t) problem.positions[t] = first + t;
      const auto expected = reference::linear_attention_forward(problem);
      const auto outputs = testing::make_outputs(host, problem, dtype, true);
      linear_attention_forward(host.execution, testing::make_inputs(host, problem, dtype, true), outputs);
      testing::expect_close(outputs.output, expected.output, testing::tolerance_of(dtype),
                            fmt::format("positions from {}", first));
    }
  }
}

TEST(LinearAttention, ResultsDoNotDependOnTheThreads) {
  const int threads = compute_threads();
  const AttentionCase c{.batch = 2, .length = 150, .heads = 3, .key_width = 33, .value_width = 20, .lrpe = true,
                        .initial_state = true, .documents = true};
  Random random(4000);
  const auto problem = testing::random_problem(c, DType::fp32, random);
  std::vector<Values> outputs;
  for (const int count : {1, 2, 3, 1}) {
    set_compute_threads(count);
    Host host;
    const auto out = testing::make_outputs(host, problem, DType::fp32, true);
    linear_attention_forward(host.execution, testing::make_inputs(host, problem, DType::fp32, true), out);
    Values all = testing::read(out.output);
    for (const Tensor& more : {out.square_sums, out.final_state})
      for (const double value : testing::read(more)) all.push_back(value);
    outputs.push_back(all);
  }
  set_compute_threads(threads);
  for (const Values& other : outputs) EXPECT_EQ(other, outputs[0]);
}

TEST(LinearAttention, RefusesSegmentsThatCrossRows) {
  Random random(5000);
  Host host;
  auto problem = testing::random_problem({.batch = 2, .length = 10}, DType::fp64, random);
  const auto outputs = testing::make_outputs(host, problem, DType::fp64, false);
  for (const std::vector<std::int64_t>& wrong :
       {std::vector<std::int64_t>{0, 20}, {0, 12, 20}, {0, 10, 19}, {1, 10, 20}, {0, 10, 10, 20}, {0, 5, 3, 10, 20}}) {
    problem.segments = wrong;
    const auto inputs = testing::make_inputs(host, problem, DType::fp64, false);
    EXPECT_THROW(linear_attention_forward(host.execution, inputs, outputs), InternalError);
  }
}

TEST(LinearAttention, OnAGpuTheErrorIsTheUsers) {
  Random random(6000);
  Host host;
  const auto problem = testing::random_problem({.length = 10}, DType::fp64, random);
  Execution execution = host.execution;
  execution.device = Device::cuda(0);
  EXPECT_THROW(linear_attention_forward(execution, testing::make_inputs(host, problem, DType::fp64, false),
                                        testing::make_outputs(host, problem, DType::fp64, false)),
               UserError);
}

}  // namespace
}  // namespace fulmen
