// Softmax attention forward and backward, over ragged lengths, grouped heads, documents and strides. The oracles are
// the reference, finite differences, and for merged blocks of a ring the whole.
#include "kernels/softmax_attention.h"

#include "tests/kernels/softmax_attention_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::SoftmaxSize;
using testing::Values;

double tolerance_of(DType dtype) { return dtype == DType::fp64 ? 1e-12 : dtype == DType::bf16 ? 2e-2 : 2e-5; }

constexpr double infinity = std::numeric_limits<double>::infinity();

// Where a query sees no key, both are minus infinity.
void expect_same_log_sums(const Tensor& actual, const Values& expected, double tolerance) {
  Values found = testing::read(actual), wanted = expected;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    if (wanted[i] != -infinity) continue;
    EXPECT_EQ(found[i], -infinity) << i;
    found[i] = wanted[i] = 0;
  }
  testing::expect_close(found, wanted, tolerance, "log_sum_exp");
}

struct Results {
  Tensor output, log_sum_exp, d_output, d_query, d_key, d_value;
};

Results make_results(Host& host, const reference::SoftmaxAttentionProblem& x, DType dtype, std::int64_t gap) {
  const auto heads = [&](std::int64_t length, std::int64_t count, std::int64_t width) {
    return testing::strided_heads(host, dtype, {x.batch, length, count, width}, gap);
  };
  return {heads(x.length, x.heads, x.value_width),
          host.poisoned(accumulation_dtype(dtype), {x.batch, x.heads, x.length}),
          heads(x.length, x.heads, x.value_width),
          heads(x.length, x.heads, x.key_width),
          heads(x.key_length, x.kv_heads, x.key_width),
          heads(x.key_length, x.kv_heads, x.value_width)};
}

void check(const SoftmaxSize& size, DType dtype, bool documents, std::int64_t gap, bool plain, Random& random) {
  SCOPED_TRACE(fmt::format("{} {} x {}, {}/{} heads of {}/{}, documents {}, gap {}, plain {}", name_of(dtype),
                           size.batch, size.length, size.heads, size.kv_heads, size.key_width, size.value_width,
                           documents, gap, plain));
  Host host;
  const auto problem = testing::softmax_problem(random, size, dtype, documents);
  const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, dtype, gap, plain);
  const Results results = make_results(host, problem, dtype, gap);
  softmax_attention_forward(host.execution, inputs, results.output, results.log_sum_exp);
  const auto expected = reference::softmax_attention_forward(problem);
  testing::expect_close(results.output, expected.output, tolerance_of(dtype), "output");
  expect_same_log_sums(results.log_sum_exp, expected.log_sum_exp, tolerance_of(dtype));
  const Values d_output = testing::rounded(random.normals(results.output.elements()), dtype);
  testing::write(results.d_output, d_output);
  softmax_attention_backward(
      host.execution, inputs,
      {results.output, results.log_sum_exp, results.d_output, results.d_query, results.d_key, results.d_value});
  const auto derivatives = reference::softmax_attention_backward(problem, d_output);
  // The rounding of the output enters the gradients by way of D.
  const double tolerance = dtype == DType::bf16 ? 4e-2 : 4 * tolerance_of(dtype);
  testing::expect_close(results.d_query, derivatives.d_query, tolerance, "d_query", 0.2);
  testing::expect_close(results.d_key, derivatives.d_key, tolerance, "d_key", 0.2);
  testing::expect_close(results.d_value, derivatives.d_value, tolerance, "d_value", 0.2);
}

constexpr SoftmaxSize sizes[] = {{1, 1, 1, 1, 1, 1},       {2, 7, 3, 1, 5, 3},     {1, 64, 2, 2, 16, 16},
                                 {2, 65, 4, 2, 64, 64},    {1, 127, 6, 3, 40, 24}, {1, 128, 2, 1, 128, 128},
                                 {3, 129, 1, 1, 64, 128},  {1, 200, 4, 1, 80, 80}, {1, 300, 2, 2, 192, 128},
                                 {1, 130, 2, 1, 256, 256}, {1, 515, 2, 1, 32, 32}};

TEST(SoftmaxAttention, EqualsTheReference) {
  Random random(90000);
  std::size_t turn = 0;
  for (const DType dtype : testing::test_dtypes())
    for (const SoftmaxSize& size : sizes)
      for (const bool documents : {false, true})
        for (const bool plain : {false, true}) {
          constexpr std::int64_t gaps[] = {0, 5, 16};
          check(size, dtype, documents, gaps[turn++ % 3], plain, random);
        }
}

TEST(SoftmaxAttention, RaggedLengths) {
  Random random(90500);
  for (const DType dtype : testing::test_dtypes())
    for (int i = 0; i < 12; ++i)
      check({random.integer(1, 2), random.integer(1, 250), 4, random.integer(0, 1) == 0 ? 2 : 4,
             8 * random.integer(1, 12), 8 * random.integer(1, 12)},
            dtype, i % 2 == 0, 8 * (i % 3), i % 4 == 0, random);
}

TEST(SoftmaxAttention, BackwardEqualsFiniteDifferences) {
  Random random(91000);
  for (const bool documents : {false, true}) {
    Host host;
    const auto problem = testing::softmax_problem(random, {2, 9, 4, 2, 3, 2}, DType::fp64, documents);
    const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, DType::fp64, 0, true);
    const Results results = make_results(host, problem, DType::fp64, 0);
    const Values d_output = random.normals(results.output.elements());
    testing::write(results.d_output, d_output);
    const auto loss = [&] {
      softmax_attention_forward(host.execution, inputs, results.output, results.log_sum_exp);
      return testing::weighted_sum(d_output, testing::read(results.output));
    };
    loss();
    softmax_attention_backward(
        host.execution, inputs,
        {results.output, results.log_sum_exp, results.d_output, results.d_query, results.d_key, results.d_value});
    testing::expect_close(results.d_query, testing::finite_differences(inputs.query, 1e-3, loss), 1e-8, "d_query");
    testing::expect_close(results.d_key, testing::finite_differences(inputs.key, 1e-3, loss), 1e-8, "d_key");
    testing::expect_close(results.d_value, testing::finite_differences(inputs.value, 1e-3, loss), 1e-8, "d_value");
  }
}

// Scores of hundreds: their exponentials overflow, exponentials of differences do not.
TEST(SoftmaxAttention, LargeScoresStayFinite) {
  Random random(91500);
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    Host host;
    auto problem = testing::softmax_problem(random, {1, 150, 2, 1, 16, 16}, dtype, false);
    problem.scale = 200.0;
    const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, dtype, 0, true);
    const Results results = make_results(host, problem, dtype, 0);
    softmax_attention_forward(host.execution, inputs, results.output, results.log_sum_exp);
    const auto expected = reference::softmax_attention_forward(problem);
    testing::expect_close(results.output, expected.output, dtype == DType::fp64 ? 1e-11 : 5e-3, "output");
    testing::expect_close(results.log_sum_exp, expected.log_sum_exp, tolerance_of(dtype), "log_sum_exp");
  }
}

// The tokens of a row [begin, end) of a tensor [batch, length, ...].
Tensor tokens(const Tensor& x, std::int64_t begin, std::int64_t end) { return x.slice(1, begin, end); }

Tensor integers_of(Host& host, const std::vector<std::int64_t>& all, std::int64_t batch, std::int64_t length,
                   std::int64_t begin, std::int64_t end) {
  std::vector<std::int64_t> part;
  for (std::int64_t row = 0; row < batch; ++row)
    for (std::int64_t i = begin; i < end; ++i) part.push_back(all[row * length + i]);
  return host.integers({batch, end - begin}, part);
}

// Queries in slices, each against every slice of keys, as a ring of ranks goes round. Merged outputs and summed
// gradients equal the whole's.
void check_ring(DType dtype, std::int64_t slices, bool documents, Random& random) {
  SCOPED_TRACE(fmt::format("{} in {} slices, documents {}", name_of(dtype), slices, documents));
  Host host;
  const SoftmaxSize size{2, 48 * slices, 4, 2, 16, 24};
  const DType wide = accumulation_dtype(dtype);
  const auto problem = testing::softmax_problem(random, size, dtype, documents);
  const SoftmaxAttentionInputs whole = testing::softmax_inputs(host, problem, dtype, 8, false);
  const Results results = make_results(host, problem, dtype, 8);
  const Values d_output = testing::rounded(random.normals(results.output.elements()), dtype);
  testing::write(results.d_output, d_output);
  const auto zeros = [&](const Tensor& like) { return host.tensor(wide, like.shape(), Values(like.elements(), 0.0)); };
  const Tensor d_query = zeros(whole.query), d_key = zeros(whole.key), d_value = zeros(whole.value);
  const auto block_of = [&](std::int64_t i, std::int64_t j) {
    SoftmaxAttentionInputs block = whole;
    block.query = tokens(whole.query, 48 * i, 48 * (i + 1));
    block.key = tokens(whole.key, 48 * j, 48 * (j + 1)), block.value = tokens(whole.value, 48 * j, 48 * (j + 1));
    const auto part = [&](const std::vector<std::int64_t>& all, std::int64_t slice) {
      return integers_of(host, all, size.batch, size.length, 48 * slice, 48 * (slice + 1));
    };
    block.query_positions = part(problem.query_positions, i), block.key_positions = part(problem.key_positions, j);
    block.first_visible = part(problem.first_visible, i);
    if (!documents && j < i) {  // as a ring says it of blocks that need no mask
      block.sees_all = true;
      block.query_positions = block.key_positions = block.first_visible = Tensor();
    }
    return block;
  };
  const auto expected = reference::softmax_attention_forward(problem);
  for (std::int64_t i = 0; i < slices; ++i) {
    const Tensor running = host.poisoned(wide, {size.batch, 48, size.heads, size.value_width});
    const Tensor sums = host.poisoned(wide, {size.batch, size.heads, 48});
    const Tensor block_output = host.poisoned(dtype, running.shape()), block_sums = host.poisoned(wide, sums.shape());
    for (std::int64_t step = 0; step < slices; ++step) {  // its own keys first, then the keys of the ranks before it
      softmax_attention_forward(host.execution, block_of(i, (i - step + slices) % slices), block_output, block_sums);
      merge_attention(host.execution, block_output, block_sums, step == 0, running, sums);
    }
    testing::write(tokens(results.output, 48 * i, 48 * (i + 1)), testing::read(running));
    for (std::int64_t j = 0; j < slices; ++j)
      softmax_attention_backward(host.execution, block_of(i, j),
                                 {tokens(results.output, 48 * i, 48 * (i + 1)), sums,
                                  tokens(results.d_output, 48 * i, 48 * (i + 1)), tokens(d_query, 48 * i, 48 * (i + 1)),
                                  tokens(d_key, 48 * j, 48 * (j + 1)), tokens(d_value, 48 * j, 48 * (j + 1)), true});
  }
  testing::expect_close(results.output, expected.output, tolerance_of(dtype), "output");
  const auto derivatives = reference::softmax_attention_backward(problem, d_output);
  const double tolerance = dtype == DType::bf16 ? 4e-2 : 4 * tolerance_of(dtype);
  testing::expect_close(d_query, derivatives.d_query, tolerance, "d_query", 0.2);
  testing::expect_close(d_key, derivatives.d_key, tolerance, "d_key", 0.2);
  testing::expect_close(d_value, derivatives.d_value, tolerance, "d_value", 0.2);
}

TEST(SoftmaxAttention, BlocksOfARingMakeTheWhole) {
  Random random(92000);
  for (const DType dtype : testing::test_dtypes())
    for (const bool documents : {false, true})
      for (const std::int64_t slices : {2, 3, 5}) check_ring(dtype, slices, documents, random);
}

// A rank of a zigzag has the pieces r and 2 n - 1 - r of a row. So its keys lie in two places of the sample.
TEST(SoftmaxAttention, TakesSlicesOfTwoPieces) {
  Random random(92500);
  for (const DType dtype : testing::test_dtypes()) {
    Host host;
    auto problem = testing::softmax_problem(random, {2, 80, 2, 1, 16, 16}, dtype, true);
    for (std::int64_t row = 0; row < 2; ++row)
      for (std::int64_t t = 0; t < 80; ++t) {
        const std::int64_t at = row * 80 + t;
        problem.query_positions[at] = t < 40 ? 40 + t : 200 + t;  // 40 to 79 and 240 to 279
        problem.key_positions[at] = t < 40 ? t : 240 + t;         // 0 to 39 and 280 to 319
        problem.first_visible[at] = t < 40 ? 25 : row == 0 ? 30 : 250;
      }
    const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, dtype, 0, false);
    const Results results = make_results(host, problem, dtype, 0);
    softmax_attention_forward(host.execution, inputs, results.output, results.log_sum_exp);
    const auto expected = reference::softmax_attention_forward(problem);
    testing::expect_close(results.output, expected.output, tolerance_of(dtype), "output");
    expect_same_log_sums(results.log_sum_exp, expected.log_sum_exp, tolerance_of(dtype));
    EXPECT_EQ(testing::read(results.log_sum_exp)[2 * 80 + 79], -infinity) << "the last query of row 1 sees a key";
  }
}

TEST(SoftmaxAttention, RepeatsItselfBitForBit) {
  Random random(93000);
  for (const DType dtype : testing::test_dtypes()) {
    Host host;
    host.execution.deterministic = true;
    const auto problem = testing::softmax_problem(random, {1, 333, 4, 2, 64, 64}, dtype, true);
    const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, dtype, 0, true);
    const Values d_output = random.normals(333 * 4 * 64);
    std::vector<Values> all;
    for (int i = 0; i < 3; ++i) {
      const Results results = make_results(host, problem, dtype, 0);
      testing::write(results.d_output, d_output);
      softmax_attention_forward(host.execution, inputs, results.output, results.log_sum_exp);
      softmax_attention_backward(
          host.execution, inputs,
          {results.output, results.log_sum_exp, results.d_output, results.d_query, results.d_key, results.d_value});
      all.push_back(testing::read(results.d_key));
      const Values d_query = testing::read(results.d_query);
      all.back().insert(all.back().end(), d_query.begin(), d_query.end());
      EXPECT_EQ(all.back(), all.front());
    }
  }
}

TEST(DocumentStarts, AreWhereDocumentsBeginInTheSample) {
  Host host;
  // Two rows of two pieces of four tokens: positions 4 to 7 and 24 to 27, the second piece's first document long.
  std::vector<std::int64_t> positions;
  for (int row = 0; row < 2; ++row)
    for (const std::int64_t begin : {4, 24})
      for (std::int64_t i = 0; i < 4; ++i) positions.push_back(begin + i);
  const Tensor places = host.integers({2, 8}, positions);
  const Tensor segments = host.integers<std::int64_t>({8}, {0, 2, 4, 8, 11, 12, 15, 16});
  const Tensor before = host.integers<std::int64_t>({2, 2}, {3, 10, 0, 1});
  const Tensor starts = host.integers({2, 8}, std::vector<std::int64_t>(16, -1));
  document_starts(host.execution, segments, places, before, starts);
  EXPECT_EQ(testing::read_integers<std::int64_t>(starts),
            std::vector<std::int64_t>({1, 1, 6, 6, 14, 14, 14, 14, 4, 4, 4, 7, 23, 23, 23, 27}));
  document_starts(host.execution, segments, places, {}, starts);
  EXPECT_EQ(testing::read_integers<std::int64_t>(starts),
            std::vector<std::int64_t>({4, 4, 6, 6, 24, 24, 24, 24, 4, 4, 4, 7, 24, 24, 24, 27}));
}

}  // namespace
}  // namespace fulmen
