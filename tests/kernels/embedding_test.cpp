// The embedding: split over ranks, repeated tokens, any number of threads.
#include "kernels/embedding.h"

#include <algorithm>
#include <map>

#include "framework/stable_order.h"
#include "framework/threads.h"
#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"
#include "tests/kernels/wide_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t vocabulary, Random& random) {
  std::vector<std::int32_t> tokens(count);
  for (auto& token : tokens) token = static_cast<std::int32_t>(random.integer(0, vocabulary - 1));
  return tokens;
}

TokenOrder order_of(const std::vector<std::int32_t>& tokens, Host& host) {
  const StableOrder order = stable_order(tokens);
  return {host.integers<std::int32_t>({static_cast<std::int64_t>(tokens.size())}, order.places), order.distinct,
          order.longest_run};
}

TEST(Embedding, EqualsTheOracleWhenSplit) {
  std::uint64_t stream = 100000;
  for (const std::int64_t width : {1, 5, 64, 130}) {
    for (const DType dtype : testing::test_dtypes()) {
      for (const std::int64_t first : {0, 7}) {
        Random random(++stream);
        Host host;
        const std::int64_t count = random.integer(1, 90), vocabulary = 20, rows = first == 0 ? 20 : 9;
        const auto tokens = random_tokens(count, vocabulary, random);
        const Values weight = testing::rounded(random.normals(rows * width), dtype);
        const Values d_out = testing::rounded(random.normals(count * width), dtype);
        const Values before = testing::rounded(random.normals(rows * width), dtype);
        const Tensor ids = host.integers<std::int32_t>({count}, tokens);
        const TokenOrder order = order_of(tokens, host);
        const Tensor out = host.poisoned_strided(dtype, count, width, 3);
        const double tolerance = testing::tolerance_of(dtype);
        embedding_forward(host.execution, ids, host.tensor(dtype, {rows, width}, weight), first, 8.0, out);
        testing::expect_close(out, reference::embedding(tokens, weight, width, first, 8.0), tolerance, "out");
        Values expected = reference::embedding_backward(tokens, d_out, width, first, rows, 8.0);
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
        for (const DType gradient_dtype : {accumulation_dtype(dtype), DType::fp64}) {
          const Tensor d_weight = host.tensor(gradient_dtype, {rows, width}, before);
          embedding_backward(host.execution, ids, order, host.strided(dtype, count, width, 2, d_out), first, 8.0,
                             d_weight);
          testing::expect_close(d_weight, expected, testing::tolerance_of(accumulation_dtype(dtype)), "d_weight");
        }
      }
    }
  }
}

TEST(Embedding, BackwardDoesNotDependOnTheThreads) {
  const int threads = compute_threads();
  Random random(101000);
  const auto tokens = random_tokens(900, 10, random);
  const Values d_out = random.normals(900 * 200);
  std::vector<Values> results;
  for (const int count : {1, 2, 3, 1}) {
    set_compute_threads(count);
    Host host;
    host.execution.deterministic = true;
    const Tensor d_weight = host.tensor(DType::fp32, {10, 200}, Values(2000, 0.0));
    embedding_backward(host.execution, host.integers<std::int32_t>({900}, tokens), order_of(tokens, host),
                       host.tensor(DType::fp32, {900, 200}, d_out), 0, 1.0, d_weight);
    results.push_back(testing::read(d_weight));
  }
  set_compute_threads(threads);
  for (const Values& other : results) EXPECT_EQ(other, results[0]);
}

TEST(Embedding, ForwardAtEveryWidthAndAlignment) {
  Random random(102000);
  for (const DType dtype : testing::test_dtypes()) {
    for (const std::int64_t width : testing::wide_widths) {
      for (const std::int64_t offset : testing::slice_offsets) {
        Host host;
        const std::int64_t count = testing::rows_for(width), rows = 7, first = 2;
        const auto tokens = random_tokens(count, 11, random);
        const Values weight = testing::rounded(random.normals(rows * width), dtype);
        const testing::Sliced weights(host, dtype, width, offset, weight), out(host, dtype, count, width, offset);
        embedding_forward(host.execution, host.integers<std::int32_t>({count}, tokens), weights, first, 4.0, out);
        EXPECT_EQ(testing::read(out.part), reference::embedding(tokens, weight, width, first, 4.0));
        out.expect_margins_untouched();
      }
    }
    Host host;
    const auto tokens = random_tokens(testing::many_rows, 100, random);
    const Values weight = testing::rounded(random.normals(100 * 8), dtype);
    const Tensor out = host.poisoned(dtype, {testing::many_rows, 8});
    embedding_forward(host.execution, host.integers<std::int32_t>({testing::many_rows}, tokens),
                      host.tensor(dtype, {100, 8}, weight), 0, 1.0, out);
    EXPECT_EQ(testing::read(out), reference::embedding(tokens, weight, 8, 0, 1.0));
  }
}

// Everything d_weight may be for a d_out of this dtype.
std::vector<DType> gradient_dtypes(DType dtype) {
  std::vector<DType> dtypes;
  for (const DType wide : testing::test_dtypes())
    if (size_of(wide) >= size_of(dtype)) dtypes.push_back(wide);
  return dtypes;
}

// Tokens of [first, first + rows) are here.
void check_backward(DType dtype, const std::vector<std::int32_t>& tokens, std::int64_t width, std::int64_t offset,
                    std::int64_t first, std::int64_t rows, Random& random) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  SCOPED_TRACE(fmt::format("{}, {} tokens, rows [{}, {}), width {} at {}", name_of(dtype), count, first, first + rows,
                           width, offset));
  // How large the sum of the longest run may become on its way: its rounding stays even if the terms then cancel.
  std::map<std::int32_t, std::int64_t> runs;
  std::int64_t longest = 0;
  for (const std::int32_t token : tokens) longest = std::max(longest, ++runs[token]);
  const double magnitude = 2 * std::sqrt(static_cast<double>(longest));
  const Values d_out = testing::rounded(random.normals(count * width), dtype);
  for (const DType gradient_dtype : gradient_dtypes(dtype)) {
    Host host;
    const Values before = testing::rounded(random.normals(rows * width), gradient_dtype);
    Values expected = reference::embedding_backward(tokens, d_out, width, first, rows, 0.5);
    for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    const Tensor ids = host.integers<std::int32_t>({count}, tokens);
    const testing::Sliced d_outs(host, dtype, width, offset, d_out);
    const testing::Sliced d_weight(host, gradient_dtype, width, offset, before);
    const testing::Sliced again(host, gradient_dtype, width, offset, before);
    const TokenOrder order = order_of(tokens, host);
    embedding_backward(host.execution, ids, order, d_outs, first, 0.5, d_weight);
    embedding_backward(host.execution, ids, order, d_outs, first, 0.5, again);
    const Values actual = testing::read(d_weight.part);
    testing::expect_close(actual, expected, testing::tolerance_of(gradient_dtype), "d_weight", magnitude);
    EXPECT_EQ(testing::read(again.part), actual) << "twice the same";
    d_weight.expect_margins_untouched();
    // Rows without a token keep their bits.
    for (std::int64_t i = 0; i < rows * width; ++i) {
      if (runs.contains(static_cast<std::int32_t>(first + i / width))) continue;
      ASSERT_EQ(actual[i], before[i]) << "row " << i / width;
    }
  }
}

// `count` of `vocabulary` tokens; half of all are token `frequent` unless it is negative.
void check_backward(DType dtype, std::int64_t count, std::int64_t width, std::int64_t offset, std::int64_t vocabulary,
                    std::int64_t first, std::int64_t rows, std::int32_t frequent, Random& random) {
  auto tokens = random_tokens(count, vocabulary, random);
  for (auto& token : tokens)
    if (frequent >= 0 && random.integer(0, 1) == 0) token = frequent;
  check_backward(dtype, tokens, width, offset, first, rows, random);
}

TEST(Embedding, BackwardOfRunsOfEveryLength) {
  Random random(103000);
  for (const DType dtype : testing::test_dtypes()) {
    // Counts around multiples of what a GPU sums together; few different tokens, then nearly all different.
    for (const std::int64_t count : {1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 96, 500})
      for (const std::int64_t vocabulary : {1, 3, 2000})
        check_backward(dtype, count, 12, 0, vocabulary, 0, vocabulary, -1, random);
    for (const std::int64_t width : testing::wide_widths)
      for (const std::int64_t offset : testing::slice_offsets)
        check_backward(dtype, 70, width, offset, 40, 5, 20, 9, random);
  }
}

// A run of each length at each place among single tokens. A GPU cuts the order into windows of 16. A run that goes on
// for 32 after its window is summed in parts.
TEST(Embedding, BackwardOfOneRunAtEveryPlace) {
  Random random(106000);
  const DType dtype = testing::test_dtypes().back();
  const std::int32_t stride = testing::few_repetitions() ? 5 : 1;
  for (std::int32_t begin = 0; begin <= 17; begin += stride) {
    for (const std::int32_t length : {1, 2, 15, 16, 17, 31, 32, 33, 34, 46, 47, 48, 49, 50, 63, 64, 65, 80}) {
      for (const std::int32_t behind : {0, 1, 20}) {
        std::vector<std::int32_t> tokens;
        for (std::int32_t i = 0; i < begin; ++i) tokens.push_back(i);
        for (std::int32_t i = 0; i < length; ++i) tokens.push_back(20);
        for (std::int32_t i = 0; i < behind; ++i) tokens.push_back(30 + i);
        for (std::size_t i = tokens.size(); i-- > 1;)  // any order but their own
          std::swap(tokens[i], tokens[static_cast<std::size_t>(random.integer(0, static_cast<std::int64_t>(i)))]);
        check_backward(dtype, tokens, 4, 0, 0, 50, random);
        check_backward(dtype, tokens, 4, 0, 20, 1, random);   // the rest are other ranks'
        check_backward(dtype, tokens, 4, 0, 21, 20, random);  // the run is
      }
    }
  }
}

TEST(Embedding, BackwardOfOneVeryFrequentToken) {
  Random random(104000);
  for (const DType dtype : testing::test_dtypes()) {
    check_backward(dtype, 40000, 12, 0, 300, 0, 300, 7, random);
    check_backward(dtype, 40000, 8, 0, 1, 0, 1, 0, random);
    check_backward(dtype, 70001, 1, 0, 5000, 100, 900, 123, random);
  }
}

TEST(Embedding, BackwardRefusesAnOrderOfOtherTokens) {
  Host host;
  const std::vector<std::int32_t> tokens{1, 2, 1}, more{1, 2, 1, 0};
  const Tensor ids = host.integers<std::int32_t>({3}, tokens), d_out = host.tensor(DType::fp32, {3, 2}, Values(6, 1.0));
  const Tensor d_weight = host.tensor(DType::fp32, {4, 2}, Values(8, 0.0));
  EXPECT_THROW(embedding_backward(host.execution, ids, order_of(more, host), d_out, 0, 1.0, d_weight), InternalError);
  EXPECT_THROW(embedding_backward(host.execution, ids, {}, d_out, 0, 1.0, d_weight), InternalError);
}

TEST(Embedding, BackwardOfOtherRanksTokensChangesNothing) {
  Random random(105000);
  for (const DType dtype : testing::test_dtypes()) {
    check_backward(dtype, 1000, 16, 0, 50, 50, 10, -1, random);
    check_backward(dtype, 1000, 16, 0, 50, 60, 1, 3, random);
  }
}

}  // namespace
}  // namespace fulmen
