// The embedding: split over ranks, repeated tokens, any number of threads.
#include "kernels/embedding.h"

#include "framework/threads.h"
#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"

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

TEST(Embedding, EqualsTheOracleWhenSplit) {
  std::uint64_t stream = 100000;
  for (const std::int64_t width : {1, 5, 64, 130}) {
    for (const DType dtype : {DType::fp64, DType::fp32}) {
      for (const std::int64_t first : {0, 7}) {
        Random random(++stream);
        Host host;
        const std::int64_t count = random.integer(1, 90), vocabulary = 20, rows = first == 0 ? 20 : 9;
        const auto tokens = random_tokens(count, vocabulary, random);
        const Values weight = testing::rounded(random.normals(rows * width), dtype);
        const Values d_out = testing::rounded(random.normals(count * width), dtype);
        const Values before = testing::rounded(random.normals(rows * width), dtype);
        const Tensor ids = host.integers<std::int32_t>({count}, tokens);
        const Tensor out = host.poisoned_strided(dtype, count, width, 3);
        const double tolerance = testing::tolerance_of(dtype);
        embedding_forward(host.execution, ids, host.tensor(dtype, {rows, width}, weight), first, 8.0, out);
        testing::expect_close(out, reference::embedding(tokens, weight, width, first, 8.0), tolerance, "out");
        Values expected = reference::embedding_backward(tokens, d_out, width, first, rows, 8.0);
        for (std::size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
        for (const DType gradient_dtype : {dtype, DType::fp64}) {
          const Tensor d_weight = host.tensor(gradient_dtype, {rows, width}, before);
          embedding_backward(host.execution, ids, host.strided(dtype, count, width, 2, d_out), first, 8.0, d_weight);
          testing::expect_close(d_weight, expected, tolerance, "d_weight");
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
    const Tensor d_weight = host.tensor(DType::fp32, {10, 200}, Values(2000, 0.0));
    embedding_backward(host.execution, host.integers<std::int32_t>({900}, tokens),
                       host.tensor(DType::fp32, {900, 200}, d_out), 0, 1.0, d_weight);
    results.push_back(testing::read(d_weight));
  }
  set_compute_threads(threads);
  for (const Values& other : results) EXPECT_EQ(other, results[0]);
}

}  // namespace
}  // namespace fulmen
