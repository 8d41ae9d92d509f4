// Linear attention with the head widths of real models, in bf16 too: long rows, many heads, documents, every layout
// that a GPU's paths tell apart. Against the recurrence in double precision.
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

// The oracle's own test: it is the same function as the other oracle.
TEST(LinearAttentionWide, RecurrenceEqualsQuadraticForm) {
  std::uint64_t stream = 40000;
  for (const AttentionCase& c : {AttentionCase{.batch = 2,
                                .length = 50,
                                .heads = 2,
                                .key_width = 7,
                                .value_width = 5,
                                .lrpe = true,
                                .initial_state = true,
                                .documents = true,
                                .value_activation = Activation::silu},
                                 AttentionCase{.batch = 1,
                                 .length = 70,
                                 .heads = 3,
                                 .key_width = 6,
                                 .value_width = 9,
                                 .slope = 1.0,
                                 .initial_state = true,
                                 .query_key_activation = Activation::none}}) {
    Random random(++stream);
    const auto problem = testing::random_problem(c, DType::fp64, random);
    const Upstream upstream = testing::random_upstream(problem, DType::fp64, true, random);
    const auto actual = testing::run_recurrence(problem, upstream);
    const auto forward = reference::linear_attention_forward(problem);
    const auto backward = reference::linear_attention_backward(problem, upstream.d_output, upstream.d_final_state);
    testing::expect_close(actual.result.output, forward.output, 1e-12, "output");
    testing::expect_close(actual.result.square_sums, forward.square_sums, 1e-12, "square_sums");
    testing::expect_close(actual.result.final_state, forward.final_state, 1e-12, "final_state");
    testing::expect_close(actual.derivatives.d_query, backward.d_query, 1e-12, "d_query");
    testing::expect_close(actual.derivatives.d_key, backward.d_key, 1e-12, "d_key");
    testing::expect_close(actual.derivatives.d_value, backward.d_value, 1e-12, "d_value");
    testing::expect_close(actual.derivatives.d_theta, backward.d_theta, 1e-11, "d_theta");
    testing::expect_close(actual.derivatives.d_initial_state, backward.d_initial_state, 1e-12, "d_initial_state");
  }
}

// Forward and backward of one case. Upstream of the final state where the case has an initial state.
void expect_recurrence(const AttentionCase& c, DType dtype, Random& random) {
  Host host;
  const auto problem = testing::random_problem(c, dtype, random);
  const Upstream upstream = testing::random_upstream(problem, dtype, c.initial_state, random);
  const auto expected = testing::run_recurrence(problem, upstream);
  const auto inputs = testing::make_inputs(host, problem, dtype, c.layout);
  const auto outputs = testing::make_outputs(host, problem, dtype, c.layout);
  linear_attention_forward(host.execution, inputs, outputs);
  const double tolerance = testing::tolerance_of(dtype);
  const std::string what = fmt::format(": {}, {}", name_of(dtype), c.describe());
  testing::expect_close(outputs.output, expected.result.output, tolerance, "output" + what);
  // A square has twice the relative error of its root.
  testing::expect_close(outputs.square_sums, expected.result.square_sums, 2.0 * tolerance, "square_sums" + what);
  testing::expect_close(outputs.final_state, expected.result.final_state, tolerance, "final_state" + what);

  const Values theta_before = random.normals(static_cast<std::int64_t>(problem.theta.size()));
  const auto gradients = testing::make_gradients(host, problem, dtype, c.layout, upstream, theta_before);
  linear_attention_backward(host.execution, inputs, gradients);
  testing::expect_close(gradients.d_query, expected.derivatives.d_query, tolerance, "d_query" + what);
  testing::expect_close(gradients.d_key, expected.derivatives.d_key, tolerance, "d_key" + what);
  testing::expect_close(gradients.d_value, expected.derivatives.d_value, tolerance, "d_value" + what);
  testing::expect_close(gradients.d_initial_state, expected.derivatives.d_initial_state, tolerance,
                        "d_initial_state" + what);
  if (c.lrpe)
    testing::expect_close(gradients.d_theta, testing::sum_of(expected.derivatives.d_theta, theta_before), 2 * tolerance,
                          "d_theta" + what, expected.theta_terms);
}

void expect_recurrences(const std::vector<AttentionCase>& cases, const std::vector<DType>& dtypes,
                        std::uint64_t stream) {
  for (const AttentionCase& c : cases) {
    for (const DType dtype : dtypes) {
      Random random(++stream);
      expect_recurrence(c, dtype, random);
    }
  }
}

// Every width at every short length, the options in turn, so that each meets each.
std::vector<AttentionCase> short_cases() {
  struct Widths {
    std::int64_t key, value;
    bool lrpe;
  };
  const Widths all_widths[] = {{64, 64, false},  {128, 128, false}, {64, 64, true},    {128, 128, true},
                               {32, 32, false},  {96, 96, false},   {192, 192, false}, {256, 256, false},
                               {64, 128, false}, {128, 64, false}};
  const double slopes[] = {0.1, 2.0, 1e-5, 0.5, 1e-3, 20.0, 1e-2};
  std::vector<AttentionCase> cases;
  std::size_t i = 0;
  for (const std::int64_t length : {1, 63, 64, 65, 127, 128, 200}) {
    for (const Widths& widths : all_widths) {
      const bool fast = widths.key == widths.value && (widths.key == 64 || widths.key == 128);
      for (int variant = 0; variant < (fast ? 3 : 1); ++variant, ++i) {
        AttentionCase c;
        c.batch = 1 + static_cast<std::int64_t>(i % 2);
        c.length = length;
        c.heads = 1 + static_cast<std::int64_t>(i / 2 % 3);
        c.key_width = widths.key, c.value_width = widths.value, c.lrpe = widths.lrpe;
        c.slope = slopes[i % 7];
        c.documents = i % 3 == 1;
        c.initial_state = i / 3 % 2 == 0;
        c.layout = i % 5 == 0 ? Layout::ragged : i % 5 == 1 ? Layout::separate : Layout::aligned;
        c.query_key_activation = i % 4 == 3 ? Activation::none : Activation::silu;
        c.value_activation = i % 7 == 2 ? Activation::silu : Activation::none;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

TEST(LinearAttentionWide, ShortRows) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  expect_recurrences(short_cases(), {DType::bf16}, 41000);
}

// Each of the fast path's kernels once, with little work, for tools that slow them down a thousandfold:
// compute-sanitizer
// --tool racecheck kernels_linear_attention_test --gtest_filter='*Small*'. The longest rows are cut into pieces.
TEST(LinearAttentionWide, SmallCasesOfEveryKernel) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  std::vector<AttentionCase> cases;
  for (const std::int64_t width : {64, 128})
    for (const bool lrpe : {false, true})
      for (const bool documents : {false, true})
        for (const Activation activation : {Activation::none, Activation::silu})
          cases.push_back({.batch = 1,
                           .length = 130,
                           .heads = 1,
                           .key_width = width,
                           .value_width = width,
                           .lrpe = lrpe,
                           .initial_state = true,
                           .documents = documents,
                           .layout = Layout::aligned,
                           .query_key_activation = activation});
  for (const std::int64_t width : {64, 128})
    for (const bool lrpe : {false, true})
      cases.push_back({.batch = 1,
                       .length = 1280,
                       .heads = 1,
                       .key_width = width,
                       .value_width = width,
                       .slope = 0.01,
                       .lrpe = lrpe,
                       .initial_state = true,
                       .documents = lrpe,
                       .layout = Layout::aligned,
                       .value_activation = lrpe ? Activation::silu : Activation::none});
  expect_recurrences(cases, {DType::bf16}, 46000);
}

constexpr Layout aligned = Layout::aligned;

TEST(LinearAttentionWide, LongRows) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  expect_recurrences(
      {{.batch = 2,
        .length = 1000,
        .heads = 2,
        .key_width = 64,
        .value_width = 64,
        .documents = true,
        .layout = aligned},
       {.batch = 1,
        .length = 1000,
        .heads = 3,
        .key_width = 128,
        .value_width = 128,
        .slope = 1e-3,
        .lrpe = true,
        .initial_state = true,
        .layout = aligned},
       {.batch = 1,
        .length = 1000,
        .heads = 2,
        .key_width = 64,
        .value_width = 64,
        .slope = 0.02,
        .lrpe = true,
        .initial_state = true,
        .documents = true,
        .layout = aligned,
        .query_key_activation = Activation::none},
       {.batch = 1, .length = 4113, .heads = 1, .key_width = 64, .value_width = 64, .slope = 1e-5, .layout = aligned},
       {.batch = 1,
        .length = 4113,
        .heads = 2,
        .key_width = 128,
        .value_width = 128,
        .slope = 0.01,
        .initial_state = true,
        .documents = true,
        .layout = aligned},
       {.batch = 1,
        .length = 5000,
        .heads = 1,
        .key_width = 128,
        .value_width = 128,
        .slope = 2e-3,
        .initial_state = true,
        .layout = aligned,
        .value_activation = Activation::silu},
       {.batch = 1,
        .length = 4113,
        .heads = 1,
        .key_width = 128,
        .value_width = 128,
        .slope = 0.05,
        .lrpe = true,
        .initial_state = true,
        .layout = aligned}},
      {DType::bf16}, 42000);
}

TEST(LinearAttentionWide, ManyHeads) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  expect_recurrences({{.batch = 8,
                       .length = 128,
                       .heads = 16,
                       .key_width = 128,
                       .value_width = 128,
                       .initial_state = true,
                       .documents = true,
                       .layout = aligned},
                      {.batch = 4, .length = 200, .heads = 16, .key_width = 64, .value_width = 64, .layout = aligned}},
                     {DType::bf16}, 44000);
}

// The last has so many heads that the plain path takes them in groups, for the sake of its scratch.
TEST(LinearAttentionWide, FullPrecision) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  expect_recurrences({{.batch = 2,
                       .length = 1000,
                       .heads = 2,
                       .key_width = 128,
                       .value_width = 128,
                       .slope = 0.05,
                       .lrpe = true,
                       .initial_state = true,
                       .documents = true},
                      {.batch = 1,
                       .length = 4113,
                       .heads = 1,
                       .key_width = 64,
                       .value_width = 64,
                       .slope = 1e-3,
                       .layout = Layout::aligned},
                      {.batch = 2,
                       .length = 129,
                       .heads = 2,
                       .key_width = 192,
                       .value_width = 256,
                       .slope = 20.0,
                       .initial_state = true}},
                     {DType::fp64, DType::fp32}, 43000);
  expect_recurrences({{.batch = 47,
                       .length = 10,
                       .heads = 80,
                       .key_width = 16,
                       .value_width = 128,
                       .slope = 0.3,
                       .lrpe = true,
                       .initial_state = true,
                       .documents = true}},
                     {DType::fp64}, 44000);
}

// Results of forward and backward in a run of their own. With kept states between pieces: whether there were any goes
// to `cut`.
Values all_results(const AttentionCase& c, const reference::LinearAttentionProblem& problem, DType dtype,
                   const Upstream& upstream, bool* cut = nullptr) {
  Host host;
  Execution execution = host.execution;
  execution.deterministic = true;
  auto inputs = testing::make_inputs(host, problem, dtype, c.layout);
  auto outputs = testing::make_outputs(host, problem, dtype, c.layout);
  if (cut != nullptr) outputs.piece_states = testing::make_piece_states(host, inputs);
  linear_attention_forward(execution, inputs, outputs);
  inputs.piece_states = outputs.piece_states;
  if (cut != nullptr) *cut = !outputs.piece_states.is_null();
  const auto g = testing::make_gradients(host, problem, dtype, c.layout, upstream, Values(problem.theta.size(), 0.0));
  linear_attention_backward(execution, inputs, g);
  Values all;
  for (const Tensor& x : {outputs.output, outputs.square_sums, outputs.final_state, g.d_query, g.d_key, g.d_value,
                          g.d_initial_state, g.d_theta}) {
    if (!x) continue;
    const Values values = testing::read(x);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

TEST(LinearAttentionWide, KeptStatesOfPiecesChangeNothing) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  const bool hopper = linear_attention_piece_elements(Host().execution, {1, 1 << 16, 1, 64, 64, DType::bf16}) > 0;
  std::uint64_t stream = 47000;
  for (const std::int64_t width : {64, 128}) {
    for (const bool lrpe : {false, true}) {
      const AttentionCase c{.batch = 2,
                            .length = 1500,
                            .heads = 3,
                            .key_width = width,
                            .value_width = width,
                            .slope = 0.01,
                            .lrpe = lrpe,
                            .initial_state = true,
                            .documents = lrpe,
                            .layout = Layout::aligned};
      Random random(++stream);
      const auto problem = testing::random_problem(c, DType::bf16, random);
      const Upstream upstream = testing::random_upstream(problem, DType::bf16, true, random);
      bool cut = false;
      const Values kept = all_results(c, problem, DType::bf16, upstream, &cut);
      EXPECT_EQ(cut, hopper);
      EXPECT_EQ(kept, all_results(c, problem, DType::bf16, upstream)) << c.describe();
    }
  }
}

// One run after another, on fresh and differently used memory.
TEST(LinearAttentionWide, DeterministicRunsAreBitIdentical) {
  std::uint64_t stream = 45000;
  for (const AttentionCase& c :
       {AttentionCase{.batch = 2,
       .length = 300,
       .heads = 3,
       .key_width = 64,
       .value_width = 64,
       .lrpe = true,
       .initial_state = true,
       .documents = true,
       .layout = Layout::aligned},
        AttentionCase{.batch = 1,
        .length = 1500,
        .heads = 1,
        .key_width = 128,
        .value_width = 128,
        .slope = 0.01,
        .layout = Layout::aligned},
        AttentionCase{.batch = 2, .length = 90, .heads = 2, .key_width = 33, .value_width = 20, .lrpe = true}}) {
    for (const DType dtype : testing::test_dtypes()) {
      Random random(++stream);
      const auto problem = testing::random_problem(c, dtype, random);
      const Upstream upstream = testing::random_upstream(problem, dtype, true, random);
      const Values first = all_results(c, problem, dtype, upstream);
      EXPECT_TRUE(std::all_of(first.begin(), first.end(), [](double x) { return std::isfinite(x); })) << c.describe();
      for (int again = 0; again < 3; ++again)
        EXPECT_EQ(all_results(c, problem, dtype, upstream), first) << c.describe();
    }
  }
}

}  // namespace
}  // namespace fulmen
