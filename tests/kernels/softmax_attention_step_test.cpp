// Decoding with a cache of keys and values: token by token as in the whole pass, a prompt appended at once, a full
// cache.
#include "kernels/softmax_attention.h"

#include "tests/kernels/softmax_attention_cases.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::SoftmaxSize;
using testing::Values;

struct Cached {
  SoftmaxAttentionCache cache;
  std::vector<std::int64_t> lengths;
};

Cached make_cache(Host& host, DType dtype, const SoftmaxSize& size, std::int64_t most) {
  return {{host.poisoned(dtype, {size.batch, size.kv_heads, most, size.key_width}),
           host.poisoned(dtype, {size.batch, size.kv_heads, most, size.value_width}),
           host.integers({size.batch}, std::vector<std::int64_t>(size.batch, 0))},
          std::vector<std::int64_t>(size.batch, 0)};
}

void advance(Host& host, Cached& cached, std::int64_t tokens) {
  for (std::int64_t& length : cached.lengths) length += tokens;
  cached.cache.lengths = host.integers({static_cast<std::int64_t>(cached.lengths.size())}, cached.lengths);
}

SoftmaxAttentionInputs token_of(const SoftmaxAttentionInputs& all, std::int64_t token) {
  SoftmaxAttentionInputs one = all;
  one.query = all.query.slice(1, token, token + 1);
  one.key = all.key.slice(1, token, token + 1), one.value = all.value.slice(1, token, token + 1);
  return one;
}

// `prompt` tokens are appended at once, the others token by token.
void check(DType dtype, const SoftmaxSize& size, std::int64_t prompt, Random& random) {
  SCOPED_TRACE(fmt::format("{} {} tokens, {}/{} heads of {}/{}, prompt of {}", name_of(dtype), size.length, size.heads,
                           size.kv_heads, size.key_width, size.value_width, prompt));
  Host host;
  const auto problem = testing::softmax_problem(random, size, dtype, false);
  const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, dtype, 8, true);
  const Values expected = reference::softmax_attention_forward(problem).output;
  Cached cached = make_cache(host, dtype, size, size.length + 2);
  if (prompt > 0) {
    softmax_attention_append(host.execution, inputs.key.slice(1, 0, prompt), inputs.value.slice(1, 0, prompt),
                             cached.cache);
    advance(host, cached, prompt);
  }
  const Tensor output = testing::strided_heads(host, dtype, {size.batch, size.length, size.heads, size.value_width}, 8);
  testing::write(output, expected);
  for (std::int64_t token = prompt; token < size.length; ++token) {
    const Tensor one = output.slice(1, token, token + 1);
    testing::write(one, Values(one.elements(), std::nan("")));
    softmax_attention_step(host.execution, token_of(inputs, token), cached.cache, one);
    advance(host, cached, 1);
  }
  testing::expect_close(output, expected, dtype == DType::fp64 ? 1e-12 : dtype == DType::bf16 ? 2e-2 : 2e-5, "output");
}

TEST(SoftmaxAttentionStep, TokenByTokenGivesTheWhole) {
  Random random(94000);
  for (const DType dtype : testing::test_dtypes()) {
    check(dtype, {3, 5, 1, 1, 1, 1}, 0, random);
    check(dtype, {2, 40, 4, 2, 24, 16}, 0, random);
    check(dtype, {2, 150, 6, 2, 64, 64}, 140, random);
    check(dtype, {1, 700, 8, 1, 128, 128}, 695, random);
    check(dtype, {1, 90, 2, 2, 256, 256}, 80, random);
    check(dtype, {1, 2000, 4, 4, 40, 72}, 1997, random);
  }
}

TEST(SoftmaxAttentionStep, RowsMayHoldDifferentNumbersOfTokens) {
  Random random(94500);
  for (const DType dtype : testing::test_dtypes()) {
    Host host;
    const SoftmaxSize size{2, 30, 2, 1, 16, 16};
    const auto problem = testing::softmax_problem(random, size, dtype, false);
    const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, dtype, 0, true);
    Cached cached = make_cache(host, dtype, size, 40);
    softmax_attention_append(host.execution, inputs.key.slice(1, 0, 29), inputs.value.slice(1, 0, 29), cached.cache);
    cached.cache.lengths = host.integers<std::int64_t>({2}, {29, 4});  // row 1 forgets all but four
    const Tensor output = host.poisoned(dtype, {2, 1, 2, 16});
    softmax_attention_step(host.execution, token_of(inputs, 29), cached.cache, output);
    // To row 1 the last token is the fifth.
    auto expected = problem;
    for (std::size_t i = 0; i < 16; ++i) {
      expected.key[(30 + 4) * 16 + i] = problem.key[(30 + 29) * 16 + i];
      expected.value[(30 + 4) * 16 + i] = problem.value[(30 + 29) * 16 + i];
    }
    for (std::size_t i = 0; i < 32; ++i) expected.query[(30 + 4) * 32 + i] = problem.query[(30 + 29) * 32 + i];
    const Values whole = reference::softmax_attention_forward(expected).output;
    Values wanted(whole.begin() + 29 * 32, whole.begin() + 30 * 32);
    wanted.insert(wanted.end(), whole.begin() + (30 + 4) * 32, whole.begin() + (30 + 5) * 32);
    testing::expect_close(output, wanted, dtype == DType::fp64 ? 1e-12 : dtype == DType::bf16 ? 2e-2 : 2e-5, "output");
  }
}

TEST(SoftmaxAttentionStep, AFullCacheIsNotWrittenBeyond) {
  Random random(95000);
  Host host;
  const SoftmaxSize size{2, 3, 1, 1, 8, 8};
  const auto problem = testing::softmax_problem(random, size, DType::fp32, false);
  const SoftmaxAttentionInputs inputs = testing::softmax_inputs(host, problem, DType::fp32, 0, true);
  Cached cached = make_cache(host, DType::fp32, size, 3);
  softmax_attention_append(host.execution, inputs.key, inputs.value, cached.cache);
  const Values keys = testing::read(cached.cache.keys);
  advance(host, cached, 3);
  const Tensor output = host.tensor(DType::fp32, {2, 1, 1, 8}, Values(16, 0.0));
  const auto step = [&] { softmax_attention_step(host.execution, token_of(inputs, 0), cached.cache, output); };
  if (testing::on_gpu()) {
    step();
    for (const double value : testing::read(output)) EXPECT_TRUE(std::isnan(value));
  } else {
    EXPECT_THROW(step(), InternalError);
  }
  EXPECT_EQ(testing::read(cached.cache.keys), keys);
}

}  // namespace
}  // namespace fulmen
