// Linear attention forward: the chunk form, the recurrent form and the quadratic oracle are one function.
#include "kernels/linear_attention.h"

#include "framework/threads.h"
#include "tests/kernels/attention_cases.h"

namespace fulmen {
namespace {

using testing::AttentionCase;
using testing::Host;
using testing::Layout;
using testing::Random;
using testing::Values;

TEST(LinearAttention, ChunkFormEqualsQuadraticForm) {
  std::uint64_t stream = 0;
  for (const AttentionCase& c : testing::attention_cases()) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const auto expected = reference::linear_attention_forward(problem);
      const auto outputs = testing::make_outputs(host, problem, dtype, c.layout);
      linear_attention_forward(host.execution, testing::make_inputs(host, problem, dtype, c.layout), outputs);
      const double tolerance = testing::tolerance_of(dtype);
      testing::expect_close(outputs.output, expected.output, tolerance, "output: " + c.describe());
      testing::expect_close(outputs.square_sums, expected.square_sums, tolerance, "square_sums: " + c.describe());
      testing::expect_close(outputs.final_state, expected.final_state, tolerance, "final_state: " + c.describe());
    }
  }
}

// Token by token, all rows at once; the state is cleared where a document starts. square_sums [batch * length, heads].
struct Recurrent {
  Values output, square_sums;
};

Recurrent run_recurrent_form(Host& host, const reference::LinearAttentionProblem& p, DType dtype, const Tensor& state,
                             const LinearAttentionInputs& inputs) {
  const Tensor output = testing::make_heads(host, p, dtype, Layout::ragged, p.value_width);
  const Tensor squares = host.poisoned(accumulation_dtype(dtype), {p.length * p.batch, p.heads});  // token by token
  for (std::int64_t t = 0; t < p.length; ++t) {
    const auto token = [&](const Tensor& x) { return x.slice(1, t, t + 1); };
    for (std::int64_t row = 0; row < p.batch && t > 0; ++row) {
      const Tensor own_state = state.slice(0, row, row + 1);
      if (std::count(p.segments.begin(), p.segments.end(), row * p.length + t) > 0)
        testing::write(own_state, Values(own_state.elements(), 0.0));
    }
    LinearAttentionInputs step = inputs;
    step.query = token(inputs.query), step.key = token(inputs.key), step.value = token(inputs.value);
    if (inputs.theta) step.positions = token(inputs.positions);
    step.segments = Tensor(), step.initial_state = Tensor();
    linear_attention_step(host.execution, step, state,
                          {token(output), squares.slice(0, t * p.batch, (t + 1) * p.batch), Tensor()});
  }
  Recurrent result{testing::read(output), {}};
  const Values by_token = testing::read(squares);
  for (std::int64_t row = 0; row < p.batch; ++row)
    for (std::int64_t t = 0; t < p.length; ++t)
      for (std::int64_t h = 0; h < p.heads; ++h)
        result.square_sums.push_back(by_token[(t * p.batch + row) * p.heads + h]);
  return result;
}

// The state that a row starts from: the initial state, or zeros.
Tensor make_state(Host& host, const reference::LinearAttentionProblem& p, DType dtype) {
  const Shape shape = testing::state_shape(p);
  return host.tensor(accumulation_dtype(dtype), shape,
                     p.initial_state.empty() ? Values(elements_of(shape), 0.0) : p.initial_state);
}

TEST(LinearAttention, RecurrentFormEqualsQuadraticForm) {
  std::uint64_t stream = 1000;
  for (const AttentionCase& c : testing::attention_cases()) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const auto expected = reference::linear_attention_forward(problem);
      const Tensor state = make_state(host, problem, dtype);
      const Recurrent actual =
          run_recurrent_form(host, problem, dtype, state, testing::make_inputs(host, problem, dtype, c.layout));
      const double tolerance = testing::tolerance_of(dtype);
      testing::expect_close(actual.output, expected.output, tolerance, "output: " + c.describe());
      testing::expect_close(actual.square_sums, expected.square_sums, tolerance, "square_sums: " + c.describe());
      testing::expect_close(state, expected.final_state, tolerance, "state: " + c.describe());
    }
  }
}

// Wide heads, few and many of them, and more keys than a backend would hold at a time.
TEST(LinearAttention, RecurrentFormEqualsChunkForm) {
  const AttentionCase cases[] = {
      {.batch = 3,
       .length = 70,
       .heads = 4,
       .key_width = 128,
       .value_width = 128,
       .initial_state = true,
       .documents = true,
       .layout = Layout::aligned},
      {.batch = 1, .length = 20, .heads = 16, .key_width = 128, .value_width = 128, .lrpe = true},
      {.batch = 80, .length = 3, .heads = 4, .key_width = 64, .value_width = 64, .initial_state = true},
      {.batch = 20, .length = 4, .heads = 8, .key_width = 96, .value_width = 24, .lrpe = true, .initial_state = true},
      {.batch = 2, .length = 5, .heads = 2, .key_width = 5, .value_width = 7, .initial_state = true},
      {.batch = 1, .length = 3, .heads = 1, .key_width = 1100, .value_width = 6, .lrpe = true, .initial_state = true},
      {.batch = 1,
       .length = 3,
       .heads = 1,
       .key_width = 4,
       .value_width = 1100,
       .initial_state = true,
       .value_activation = Activation::silu},
      {.batch = 1, .length = 3, .heads = 2, .key_width = 3, .value_width = 301},
      // More heads than a GPU takes at once.
      {.batch = 700, .length = 2, .heads = 2, .key_width = 24, .value_width = 20, .initial_state = true},
      {.batch = 60, .length = 2, .heads = 6, .key_width = 128, .value_width = 128, .initial_state = true},
      {.batch = 90, .length = 2, .heads = 7, .key_width = 9, .value_width = 3, .lrpe = true, .initial_state = true},
  };
  std::uint64_t stream = 1500;
  for (const AttentionCase& c : cases) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const auto inputs = testing::make_inputs(host, problem, dtype, c.layout);
      const auto expected = testing::make_outputs(host, problem, dtype, c.layout);
      linear_attention_forward(host.execution, inputs, expected);
      const Tensor state = make_state(host, problem, dtype);
      const Recurrent actual = run_recurrent_form(host, problem, dtype, state, inputs);
      const double tolerance = testing::tolerance_of(dtype);
      testing::expect_close(actual.output, testing::read(expected.output), tolerance, "output: " + c.describe());
      testing::expect_close(actual.square_sums, testing::read(expected.square_sums), tolerance,
                            "square_sums: " + c.describe());
      testing::expect_close(state, testing::read(expected.final_state), tolerance, "state: " + c.describe());
    }
  }
}

// Retention chunk by chunk, as RetNet's paper has it (arXiv 2307.08621, equation 7), for one row and head after
// another. The paper's first version adds the keys of a chunk to the state without their decay to the chunk's end.
Values retention_by_chunks(const reference::LinearAttentionProblem& p, std::int64_t chunk, bool inner_decay) {
  Values output(p.value.size(), 0.0);
  for (std::int64_t row = 0; row < p.batch; ++row)
    for (std::int64_t head = 0; head < p.heads; ++head) {
      const double slope = p.slope[head];
      const auto at = [&](std::int64_t t, std::int64_t width) {
        return ((row * p.length + t) * p.heads + head) * width;
      };
      Values state(p.key_width * p.value_width, 0.0);
      for (std::int64_t begin = 0; begin < p.length; begin += chunk) {
        const std::int64_t tokens = std::min(chunk, p.length - begin);
        for (std::int64_t t = 0; t < tokens; ++t)
          for (std::int64_t j = 0; j < p.value_width; ++j) {
            double sum = 0.0;
            for (std::int64_t i = 0; i < p.key_width; ++i)
              sum += p.query[at(begin + t, p.key_width) + i] * state[i * p.value_width + j];
            sum *= std::exp(-slope * static_cast<double>(t + 1));
            for (std::int64_t s = 0; s <= t; ++s) {
              double score = 0.0;
              for (std::int64_t i = 0; i < p.key_width; ++i)
                score += p.query[at(begin + t, p.key_width) + i] * p.key[at(begin + s, p.key_width) + i];
              sum += score * std::exp(-slope * static_cast<double>(t - s)) * p.value[at(begin + s, p.value_width) + j];
            }
            output[at(begin + t, p.value_width) + j] = sum;
          }
        for (double& x : state) x *= std::exp(-slope * static_cast<double>(tokens));
        for (std::int64_t s = 0; s < tokens; ++s) {
          const double decay = inner_decay ? std::exp(-slope * static_cast<double>(tokens - 1 - s)) : 1.0;
          for (std::int64_t i = 0; i < p.key_width; ++i)
            for (std::int64_t j = 0; j < p.value_width; ++j)
              state[i * p.value_width + j] +=
                  decay * p.key[at(begin + s, p.key_width) + i] * p.value[at(begin + s, p.value_width) + j];
        }
      }
    }
  return output;
}

// With RetNet's decays 1 - 2^(-5 - h), values twice as wide as keys, rows of several chunks.
TEST(LinearAttention, RetentionsThreeFormsAgreeAndNeedTheInnerDecay) {
  FULMEN_CPU_ONLY("in double precision");
  std::uint64_t stream = 1800;
  for (const std::int64_t length : {64, 200, 333}) {
    const AttentionCase c{.batch = 2,
                          .length = length,
                          .heads = 4,
                          .key_width = 16,
                          .value_width = 32,
                          .query_key_activation = Activation::none};
    Random random(++stream);
    Host host;
    auto problem = testing::random_problem(c, DType::fp64, random);
    for (std::int64_t h = 0; h < c.heads; ++h)
      problem.slope[h] = -std::log1p(-std::exp2(-5.0 - static_cast<double>(h)));
    const auto inputs = testing::make_inputs(host, problem, DType::fp64, c.layout);
    const auto outputs = testing::make_outputs(host, problem, DType::fp64, c.layout);
    linear_attention_forward(host.execution, inputs, outputs);
    const Values chunkwise = testing::read(outputs.output);
    const Values parallel = reference::linear_attention_forward(problem).output;  // (Q K^T .* D) V
    const Values recurrent =
        run_recurrent_form(host, problem, DType::fp64, make_state(host, problem, DType::fp64), inputs).output;
    testing::expect_close(chunkwise, parallel, 1e-12, "chunkwise and parallel: " + c.describe());
    testing::expect_close(recurrent, parallel, 1e-12, "recurrent and parallel: " + c.describe());
    testing::expect_close(chunkwise, recurrent, 1e-12, "chunkwise and recurrent: " + c.describe());
    testing::expect_close(retention_by_chunks(problem, 64, true), parallel, 1e-12,
                          "the paper's chunks: " + c.describe());
    const double error = testing::relative_error(retention_by_chunks(problem, 64, false), parallel, 0.01);
    if (length <= 64)
      EXPECT_LE(error, 1e-12) << "nothing is read of the state of a single chunk";
    else
      EXPECT_GE(error, 0.1) << "without the inner decay: " << c.describe();
  }
}

// A step without square sums leaves the same output and state.
TEST(LinearAttention, StepNeedsNoSquareSums) {
  Random random(1900);
  for (const DType dtype : testing::test_dtypes()) {
    Host host;
    const auto problem = testing::random_problem(
        {.batch = 2, .heads = 3, .key_width = 20, .value_width = 40, .lrpe = true, .initial_state = true}, dtype,
        random);
    const auto inputs = testing::make_inputs(host, problem, dtype, Layout::ragged);
    const auto with = testing::make_outputs(host, problem, dtype, Layout::ragged);
    const auto without = testing::make_outputs(host, problem, dtype, Layout::ragged);
    const Tensor state = make_state(host, problem, dtype), other_state = make_state(host, problem, dtype);
    linear_attention_step(host.execution, inputs, state, {with.output, with.square_sums, Tensor()});
    linear_attention_step(host.execution, inputs, other_state, {without.output, Tensor(), Tensor()});
    const Values output = testing::read(with.output);
    EXPECT_TRUE(std::all_of(output.begin(), output.end(), [](double x) { return std::isfinite(x); }));
    EXPECT_EQ(output, testing::read(without.output));
    EXPECT_EQ(testing::read(state), testing::read(other_state));
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
    const auto whole = testing::make_inputs(host, problem, DType::fp64, Layout::ragged);
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

// Angles of positions far out, where fp32 would have lost the phase, and beyond the fast reduction's range. Heads are
// narrow, or fit a GPU's fast path.
TEST(LinearAttention, LrpeAtFarPositions) {
  for (const std::int64_t first : {131072L, 999990L, 50000000L, 4000000000L}) {
    for (const std::int64_t width : {8, 64}) {
      for (const DType dtype : testing::test_dtypes()) {
        Random random(3000);
        Host host;
        const AttentionCase c{
            .length = 70, .key_width = width, .value_width = width, .lrpe = true, .layout = Layout::aligned};
        auto problem = testing::random_problem(c, dtype, random);
        for (std::int64_t t = 0; t < c.length; ++t) problem.positions[t] = first + t;
        const auto expected = reference::linear_attention_forward(problem);
        const auto outputs = testing::make_outputs(host, problem, dtype, c.layout);
        linear_attention_forward(host.execution, testing::make_inputs(host, problem, dtype, c.layout), outputs);
        // An angle of 4e9 has 5e-7 of rounding in double precision.
        const double tolerance = std::max(testing::tolerance_of(dtype), 1e-15 * static_cast<double>(first));
        testing::expect_close(outputs.output, expected.output, tolerance,
                              fmt::format("width {} positions from {}", width, first));
      }
    }
  }
}

TEST(LinearAttention, ResultsDoNotDependOnTheThreads) {
  FULMEN_CPU_ONLY("about threads of the CPU");
  const int threads = compute_threads();
  const AttentionCase c{.batch = 2,
                        .length = 150,
                        .heads = 3,
                        .key_width = 33,
                        .value_width = 20,
                        .lrpe = true,
                        .initial_state = true,
                        .documents = true};
  Random random(4000);
  const auto problem = testing::random_problem(c, DType::fp32, random);
  std::vector<Values> outputs;
  for (const int count : {1, 2, 3, 1}) {
    set_compute_threads(count);
    Host host;
    const auto out = testing::make_outputs(host, problem, DType::fp32, Layout::ragged);
    linear_attention_forward(host.execution, testing::make_inputs(host, problem, DType::fp32, Layout::ragged), out);
    Values all = testing::read(out.output);
    for (const Tensor& more : {out.square_sums, out.final_state})
      for (const double value : testing::read(more)) all.push_back(value);
    outputs.push_back(all);
  }
  set_compute_threads(threads);
  for (const Values& other : outputs) EXPECT_EQ(other, outputs[0]);
}

TEST(LinearAttention, RefusesSegmentsThatCrossRows) {
  FULMEN_CPU_ONLY("segments on a GPU are not read by the host");
  Random random(5000);
  Host host;
  auto problem = testing::random_problem({.batch = 2, .length = 10}, DType::fp64, random);
  const auto outputs = testing::make_outputs(host, problem, DType::fp64, Layout::separate);
  for (const std::vector<std::int64_t>& wrong :
       {std::vector<std::int64_t>{0, 20}, {0, 12, 20}, {0, 10, 19}, {1, 10, 20}, {0, 10, 10, 20}, {0, 5, 3, 10, 20}}) {
    problem.segments = wrong;
    const auto inputs = testing::make_inputs(host, problem, DType::fp64, Layout::separate);
    EXPECT_THROW(linear_attention_forward(host.execution, inputs, outputs), InternalError);
  }
}

TEST(LinearAttention, WithoutCudaInTheBuildTheErrorIsTheUsers) {
  if (gpu::built) GTEST_SKIP() << "this build has CUDA";
  Random random(6000);
  Host host;
  const auto problem = testing::random_problem({.length = 10}, DType::fp64, random);
  Execution execution = host.execution;
  execution.device = Device::cuda(0);
  EXPECT_THROW(linear_attention_forward(execution, testing::make_inputs(host, problem, DType::fp64, Layout::separate),
                                        testing::make_outputs(host, problem, DType::fp64, Layout::separate)),
               UserError);
}

}  // namespace
}  // namespace fulmen
