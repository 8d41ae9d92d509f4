// Linear attention with keys of up to 256 and values of up to 512 columns, part by part: the sweeps over states, what
// is read of an initial state, what a chunk adds, then all together. Against the recurrence in double precision. A
// failure names the tiles that are wrong, and which tests fail tells the operand.
#include <map>

#include "kernels/linear_attention_states.h"
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

constexpr std::int64_t tile = 64;

// The dimension that is cut into tiles together with the last.
enum class Tiled : std::uint8_t { tokens = 1, keys = 2 };  // of [batch, length, heads, width]; of a state

struct WrongTile {
  std::int64_t wrong = 0, missing = 0;  // elements; those that are not numbers
  double worst = 0.0;
  std::string first;
};

// Where x differs by more than `tolerance` times its largest element, tile by tile; empty where all is close.
std::string wrong_tiles(const Tensor& x, const Values& expected, double tolerance, Tiled tiled) {
  const Values actual = testing::read(x);
  double largest = 0.01;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  std::map<std::string, WrongTile> tiles;
  std::size_t i = 0;
  const int rows = static_cast<int>(tiled), between = 3 - rows;
  std::array<std::int64_t, 4> at{};
  for (at[0] = 0; at[0] < x.size(0); ++at[0])
    for (at[1] = 0; at[1] < x.size(1); ++at[1])
      for (at[2] = 0; at[2] < x.size(2); ++at[2])
        for (at[3] = 0; at[3] < x.size(3); ++at[3], ++i) {
          const double difference = std::abs(actual[i] - expected[i]);
          if (difference <= tolerance * largest) continue;
          WrongTile& found = tiles[fmt::format("row {} head {} {} {} columns {}", at[0], at[between],
                                               tiled == Tiled::tokens ? "tokens" : "keys", at[rows] / tile * tile,
                                               at[3] / tile * tile)];
          if (found.first.empty())
            found.first = fmt::format("{} {}: {} for {}", at[rows], at[3], actual[i], expected[i]);
          ++found.wrong;
          if (!std::isfinite(actual[i])) ++found.missing;
          found.worst = std::max(found.worst, difference / largest);
        }
  std::string told;
  int count = 0;
  for (const auto& [place, found] : tiles)
    if (++count <= 12)
      told += fmt::format("\n  {}: {} wrong, {} no numbers, worst {:.2g}, first at {}", place, found.wrong,
                          found.missing, found.worst, found.first);
  return count == 0 ? "" : fmt::format("{} tiles{}", count, told);
}

void expect_tiles(const Tensor& x, const Values& expected, double tolerance, Tiled tiled, const std::string& what) {
  ASSERT_EQ(static_cast<std::size_t>(x.elements()), expected.size()) << what;
  const std::string wrong = wrong_tiles(x, expected, tolerance, tiled);
  EXPECT_EQ(wrong, "") << what << ", FULMEN_TEST_SEED=" << testing::run_seed();
}

// On a GPU the widths that its kernels are made for, in bf16; on the CPU little work, in fp64.
DType dtype_here() { return testing::on_gpu() ? DType::bf16 : DType::fp64; }

struct Widths {
  std::int64_t key, value;
};
std::vector<Widths> widths_here() {
  if (!testing::on_gpu()) return {{256, 512}};
  return {{256, 512}, {64, 192}, {128, 320}, {192, 64}, {256, 256}};
}

AttentionCase plain_case(const Widths& widths, std::int64_t length) {
  return {.batch = 1,
          .length = length,
          .heads = 2,
          .key_width = widths.key,
          .value_width = widths.value,
          .slope = 0.02,
          .layout = Layout::aligned,
          .query_key_activation = Activation::none};
}
std::int64_t length_here(std::int64_t on_gpu) { return testing::on_gpu() ? on_gpu : on_gpu / 8 + 1; }

// Forward and backward.
void expect_problem(const AttentionCase& c, const reference::LinearAttentionProblem& problem,
                    const Upstream& upstream) {
  const DType dtype = dtype_here();
  Host host;
  const auto expected = testing::run_recurrence(problem, upstream);
  const auto inputs = testing::make_inputs(host, problem, dtype, c.layout);
  const auto outputs = testing::make_outputs(host, problem, dtype, c.layout);
  linear_attention_forward(host.execution, inputs, outputs);
  const double tolerance = testing::tolerance_of(dtype);
  const std::string what = ": " + c.describe();
  expect_tiles(outputs.output, expected.result.output, tolerance, Tiled::tokens, "output" + what);
  testing::expect_close(outputs.square_sums, expected.result.square_sums, 2.0 * tolerance, "square_sums" + what);
  expect_tiles(outputs.final_state, expected.result.final_state, tolerance, Tiled::keys, "final_state" + what);

  const auto g = testing::make_gradients(host, problem, dtype, c.layout, upstream, {});
  linear_attention_backward(host.execution, inputs, g);
  expect_tiles(g.d_query, expected.derivatives.d_query, tolerance, Tiled::tokens, "d_query" + what);
  expect_tiles(g.d_key, expected.derivatives.d_key, tolerance, Tiled::tokens, "d_key" + what);
  expect_tiles(g.d_value, expected.derivatives.d_value, tolerance, Tiled::tokens, "d_value" + what);
  expect_tiles(g.d_initial_state, expected.derivatives.d_initial_state, tolerance, Tiled::keys,
               "d_initial_state" + what);
}

// The diagnosis itself: a wrong element and an element that was not written are told with their tiles.
TEST(LinearAttentionParts, WrongTilesAreNamed) {
  Host host;
  Values values(static_cast<std::size_t>(2 * 70 * 3 * 130), 1.0);
  const Tensor x = host.tensor(DType::fp64, {2, 70, 3, 130}, values);
  EXPECT_EQ(wrong_tiles(x, values, 1e-12, Tiled::tokens), "");
  values[((1 * 70 + 65) * 3 + 2) * 130 + 129] = 3.0;
  const std::string wrong = wrong_tiles(x, values, 1e-12, Tiled::tokens);
  EXPECT_NE(wrong.find("row 1 head 2 tokens 64 columns 128: 1 wrong, 0 no numbers"), std::string::npos) << wrong;
  EXPECT_NE(wrong.find("first at 65 129: 1 for 3"), std::string::npos) << wrong;
  EXPECT_NE(wrong_tiles(host.poisoned(DType::fp64, {1, 1, 1, 1}), {0.0}, 1.0, Tiled::keys), "");
}

// The sweep over keys and values, and the sweep over queries and output gradients.
TEST(LinearAttentionParts, StatesAlone) {
  std::uint64_t stream = 60000;
  for (const Widths& widths : widths_here())
    for (const bool documents : {false, true}) {
      AttentionCase c = plain_case(widths, length_here(450));
      c.documents = documents;
      Random random(++stream);
      const DType dtype = dtype_here();
      Host host;
      const auto problem = testing::random_problem(c, dtype, random);
      const Upstream upstream = testing::random_upstream(problem, dtype, false, random);
      const auto expected = testing::run_recurrence(problem, upstream);
      const auto inputs = testing::make_inputs(host, problem, dtype, c.layout);
      const auto gradients = testing::make_gradients(host, problem, dtype, c.layout, upstream, {});
      const Tensor state = host.poisoned(accumulation_dtype(dtype), testing::state_shape(problem));
      // The keys are rounded to twice the digits of bf16 in front of their products.
      const double tolerance = dtype == DType::bf16 ? 1e-4 : 1e-12;
      linear_attention_final_state(host.execution, inputs, state);
      expect_tiles(state, expected.result.final_state, tolerance, Tiled::keys, "final state: " + c.describe());
      linear_attention_initial_state_gradient(host.execution, inputs, gradients.d_output, state);
      expect_tiles(state, expected.derivatives.d_initial_state, tolerance, Tiled::keys,
                   "gradient of the initial state: " + c.describe());
    }
}

// Without keys all that is read is the initial state; without queries, the gradient of the final state.
TEST(LinearAttentionParts, InitialAndFinalStatesAlone) {
  std::uint64_t stream = 61000;
  for (const Widths& widths : widths_here())
    for (const bool keys : {false, true}) {
      AttentionCase c = plain_case(widths, length_here(450));
      c.initial_state = true;
      Random random(++stream);
      auto problem = testing::random_problem(c, dtype_here(), random);
      Values& none = keys ? problem.query : problem.key;
      std::fill(none.begin(), none.end(), 0.0);
      SCOPED_TRACE(keys ? "without queries" : "without keys");
      expect_problem(c, problem, testing::random_upstream(problem, dtype_here(), true, random));
    }
}

// Rows of at most 256 tokens from a state of zero: scores and their products.
TEST(LinearAttentionParts, ScoresAlone) {
  std::uint64_t stream = 62000;
  for (const Widths& widths : widths_here())
    for (const std::int64_t length : {64, 128, 200, 256}) {
      AttentionCase c = plain_case(widths, length_here(length));
      Random random(++stream);
      const auto problem = testing::random_problem(c, dtype_here(), random);
      expect_problem(c, problem, testing::random_upstream(problem, dtype_here(), false, random));
    }
}

TEST(LinearAttentionParts, AllTogether) {
  std::uint64_t stream = 63000;
  std::size_t i = 0;
  const double slopes[] = {0.03, 2.0, 1e-5, 0.2, 1e-3};
  std::vector<std::int64_t> lengths = {70};
  if (testing::on_gpu()) lengths = {1, 63, 64, 65, 129, 256, 257, 300, 385, 520, 700};
  for (const std::int64_t length : lengths)
    for (const Widths& widths : widths_here()) {
      if (length > 300 && widths.key * widths.value < 256 * 512) continue;
      ++i;
      AttentionCase c = plain_case(widths, length);
      c.batch = 1 + static_cast<std::int64_t>(i % 2), c.heads = 1 + static_cast<std::int64_t>(i / 2 % 3);
      c.slope = slopes[i % 5];
      c.documents = i % 3 == 1, c.initial_state = i / 3 % 2 == 0;
      if (i % 5 == 1) c.layout = Layout::separate;
      Random random(++stream);
      const auto problem = testing::random_problem(c, dtype_here(), random);
      expect_problem(c, problem, testing::random_upstream(problem, dtype_here(), c.initial_state, random));
    }
}

// The values of one row and head, of [batch, length, heads, width].
Values values_of_head(const Values& all, const AttentionCase& c, std::int64_t width, std::int64_t row,
                      std::int64_t head) {
  Values values;
  for (std::int64_t t = 0; t < c.length; ++t) {
    const auto begin = all.begin() + ((row * c.length + t) * c.heads + head) * width;
    values.insert(values.end(), begin, begin + width);
  }
  return values;
}

// Row and head of a tensor, as a problem of one row and head has it.
Tensor head_of(const Tensor& x, std::int64_t row, std::int64_t head) {
  return x.slice(0, row, row + 1).slice(2, head, head + 1);
}

// As many blocks as a training step has, more than multiprocessors. Heads know nothing of each other: two are compared.
TEST(LinearAttentionParts, RowsOfATrainingStep) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  const AttentionCase c{.batch = 4,
                        .length = 2048,
                        .heads = 4,
                        .key_width = 256,
                        .value_width = 512,
                        .slope = 1.0 / 32,
                        .layout = Layout::aligned,
                        .query_key_activation = Activation::none};
  Random random(64000);
  Host host;
  const auto problem = testing::random_problem(c, DType::bf16, random);
  const Upstream upstream = testing::random_upstream(problem, DType::bf16, false, random);
  const auto inputs = testing::make_inputs(host, problem, DType::bf16, c.layout);
  const auto outputs = testing::make_outputs(host, problem, DType::bf16, c.layout);
  const auto g = testing::make_gradients(host, problem, DType::bf16, c.layout, upstream, {});
  linear_attention_forward(host.execution, inputs, outputs);
  linear_attention_backward(host.execution, inputs, g);
  for (const auto& [row, head] : {std::pair<std::int64_t, std::int64_t>{1, 0}, {3, 3}}) {
    AttentionCase alone = c;
    alone.batch = alone.heads = 1;
    auto part = problem;
    part.batch = part.heads = 1;
    part.query = values_of_head(problem.query, c, c.key_width, row, head);
    part.key = values_of_head(problem.key, c, c.key_width, row, head);
    part.value = values_of_head(problem.value, c, c.value_width, row, head);
    part.slope = {problem.slope[static_cast<std::size_t>(head)]};
    part.segments = {0, c.length};
    const auto expected =
        testing::run_recurrence(part, {values_of_head(upstream.d_output, c, c.value_width, row, head), {}});
    const double tolerance = testing::tolerance_of(DType::bf16);
    const std::string what = fmt::format(" of row {} head {}", row, head);
    const auto expect = [&](const Tensor& x, const Values& values, const char* name) {
      expect_tiles(head_of(x, row, head), values, tolerance, Tiled::tokens, name + what);
    };
    expect(outputs.output, expected.result.output, "output");
    expect(g.d_query, expected.derivatives.d_query, "d_query");
    expect(g.d_key, expected.derivatives.d_key, "d_key");
    expect(g.d_value, expected.derivatives.d_value, "d_value");
  }
}

// Everything that forward and backward write.
Values all_results(const AttentionCase& c, const reference::LinearAttentionProblem& problem, const Upstream& upstream) {
  Host host;
  const auto inputs = testing::make_inputs(host, problem, dtype_here(), c.layout);
  const auto outputs = testing::make_outputs(host, problem, dtype_here(), c.layout);
  linear_attention_forward(host.execution, inputs, outputs);
  const auto g = testing::make_gradients(host, problem, dtype_here(), c.layout, upstream, {});
  linear_attention_backward(host.execution, inputs, g);
  Values all;
  for (const Tensor& x :
       {outputs.output, outputs.square_sums, outputs.final_state, g.d_query, g.d_key, g.d_value, g.d_initial_state}) {
    const Values values = testing::read(x);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

TEST(LinearAttentionParts, RunsAreBitIdentical) {
  AttentionCase c = plain_case({256, 512}, length_here(600));
  c.batch = 2, c.documents = c.initial_state = true;
  Random random(65000);
  const auto problem = testing::random_problem(c, dtype_here(), random);
  const Upstream upstream = testing::random_upstream(problem, dtype_here(), true, random);
  const Values first = all_results(c, problem, upstream);
  EXPECT_TRUE(std::all_of(first.begin(), first.end(), [](double x) { return std::isfinite(x); }));
  for (int again = 0; again < (testing::on_gpu() ? 5 : 1); ++again)
    EXPECT_TRUE(all_results(c, problem, upstream) == first) << "run " << again;
}

// Each kernel once, with little work, for tools that slow them down a thousandfold (scripts/sanitize_gpu.sh).
TEST(LinearAttentionParts, SmallCasesOfEveryKernel) {
  if (!testing::on_gpu()) GTEST_SKIP() << "for the paths of a GPU";
  std::uint64_t stream = 66000;
  for (const bool documents : {false, true}) {
    AttentionCase c = plain_case({128, 192}, 330);
    c.heads = 1, c.documents = documents, c.initial_state = true;
    Random random(++stream);
    const auto problem = testing::random_problem(c, DType::bf16, random);
    expect_problem(c, problem, testing::random_upstream(problem, DType::bf16, true, random));
  }
}

}  // namespace
}  // namespace fulmen
