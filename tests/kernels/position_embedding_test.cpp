// Learned positions against plain loops.
#include "kernels/position_embedding.h"

#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

TEST(PositionEmbedding, AddsAndSumsRows) {
  Random random(81000);
  const std::int64_t batch = 3, length = 5, rows = 11, width = 37, first = 4;
  for (const DType dtype : testing::test_dtypes()) {
    const DType wide = accumulation_dtype(dtype);
    Host host;
    const Values weight = testing::rounded(random.normals(rows * width), dtype),
                 x = testing::rounded(random.normals(batch * length * width), dtype),
                 before = random.normals(rows * width);
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i < batch * length; ++i) positions.push_back(first + i % length);
    Values expected = x, sums = testing::rounded(before, wide);
    for (std::int64_t t = 0; t < batch * length; ++t)
      for (std::int64_t c = 0; c < width; ++c) {
        const auto at = static_cast<std::size_t>(positions[static_cast<std::size_t>(t)] * width + c);
        const auto i = static_cast<std::size_t>(t * width + c);
        expected[i] += weight[at];
        sums[at] += x[i];
      }
    const Tensor places = host.integers<std::int64_t>({batch, length}, positions);
    const Tensor out = host.strided(dtype, batch * length, width, 3, x);
    position_embedding_forward(host.execution, places, host.tensor(dtype, {rows, width}, weight), out);
    testing::expect_close(out, expected, testing::tolerance_of(dtype), "out");
    const Tensor d_weight = host.tensor(wide, {rows, width}, before);
    position_embedding_backward(host.execution, places, host.strided(dtype, batch * length, width, 5, x), d_weight);
    testing::expect_close(d_weight, sums, testing::tolerance_of(wide), "d_weight");
  }
}

}  // namespace
}  // namespace fulmen
