// The rotary position embedding: against its definition, strided, at large positions, its inverse, and the frequencies
// against values of the public code.
#include "kernels/rotation.h"

#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

struct Case {
  std::int64_t heads, head_width, rotated;
  double scale;
};
constexpr Case cases[] = {{1, 2, 2, 1.0},    {3, 7, 4, 0.5},     {2, 16, 16, 1.0}, {5, 64, 64, 0.125},
                          {4, 64, 16, 1.0},  {3, 80, 48, 0.3},   {2, 9, 0, 3.0},   {1, 256, 256, 1.0},
                          {32, 64, 64, 1.0}, {2, 512, 512, -1.0}};

std::vector<std::int64_t> random_positions(Random& random, std::int64_t tokens, std::int64_t last) {
  std::vector<std::int64_t> positions;
  for (std::int64_t t = 0; t < tokens; ++t) positions.push_back(random.integer(0, last));
  return positions;
}

void check(DType dtype, const Case& shape, RotationPairs pairs, std::int64_t gap, Random& random) {
  SCOPED_TRACE(fmt::format("{} {} heads of {}, {} rotated, gap {}", name_of(dtype), shape.heads, shape.head_width,
                           shape.rotated, gap));
  Host host;
  const std::int64_t tokens = random.integer(1, 45), columns = shape.heads * shape.head_width;
  const Values x = testing::rounded(random.normals(tokens * columns), dtype);
  Values frequencies;
  if (shape.rotated > 0) frequencies = rotary_frequencies(10000.0, shape.rotated);
  const auto positions = random_positions(random, tokens, 70000);
  Rotation rotation{shape.head_width, pairs, {}, shape.scale};
  if (shape.rotated > 0) rotation.frequencies = host.tensor(DType::fp64, {shape.rotated / 2}, frequencies);
  const Tensor places = host.integers({tokens}, positions);
  const Tensor turned = host.strided(dtype, tokens, columns, gap, x);
  rotate(host.execution, rotation, places, false, turned);
  const double tolerance = testing::tolerance_of(dtype);
  const Values expected = reference::rotate(x, shape.head_width, pairs, frequencies, positions, shape.scale);
  testing::expect_close(turned, expected, dtype == DType::fp64 ? 1e-11 : tolerance, "turned");
  // The transpose of the same map: (y, R x) = (R^T y, x).
  const Values y = testing::rounded(random.normals(tokens * columns), dtype);
  const Tensor back = host.strided(dtype, tokens, columns, gap, y);
  rotate(host.execution, rotation, places, true, back);
  Values negative = frequencies;
  for (double& frequency : negative) frequency = -frequency;
  testing::expect_close(back, reference::rotate(y, shape.head_width, pairs, negative, positions, shape.scale),
                        dtype == DType::fp64 ? 1e-11 : tolerance, "turned back");
  if (dtype != DType::fp64) return;
  EXPECT_NEAR(testing::weighted_sum(y, testing::read(turned)), testing::weighted_sum(x, testing::read(back)),
              1e-9 * static_cast<double>(tokens * columns));
}

TEST(Rotation, EqualsTheDefinitionAndItsInverseIsTheTranspose) {
  Random random(84000);
  for (const DType dtype : testing::test_dtypes())
    for (const Case& shape : cases)
      for (const RotationPairs pairs : {RotationPairs::halves, RotationPairs::neighbours})
        for (const std::int64_t gap : {0, 3, 16}) check(dtype, shape, pairs, gap, random);
}

TEST(Rotation, KeepsThePhaseAtLargePositions) {
  // Turns of a frequency 2 pi / 1024: a position and its remainder by 1024 are the same angle.
  constexpr double frequency = 2.0 * 3.14159265358979323846 / 1024.0;
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    Host host;
    const std::vector<std::int64_t> far = {(std::int64_t{1} << 32) - 1, (std::int64_t{1} << 31) + 77, 1 << 20},
                                    near = {1023, 77, 0};
    const Rotation rotation{2, RotationPairs::halves, host.tensor(DType::fp64, {1}, {frequency}), 1.0};
    const Values x = {1, 0, 0.6, 0.8, -0.5, 2};
    const Tensor at_far = host.tensor(dtype, {3, 2}, x), at_near = host.tensor(dtype, {3, 2}, x);
    rotate(host.execution, rotation, host.integers({3}, far), false, at_far);
    rotate(host.execution, rotation, host.integers({3}, near), false, at_near);
    testing::expect_close(at_far, testing::read(at_near), 1e-5, "far positions");
  }
}

TEST(Rotation, TakesPositionsOfAnyStride) {
  Host host;
  const Tensor positions = host.integers<std::int64_t>({3, 2}, {5, -1, 9, -1, 2, -1}).select(1, 0);
  const Rotation rotation{2, RotationPairs::halves, host.tensor(DType::fp64, {1}, {0.1}), 1.0};
  const Values x = {1, 2, 3, 4, 5, 6};
  const Tensor turned = host.tensor(DType::fp64, {3, 2}, x);
  rotate(host.execution, rotation, positions, false, turned);
  testing::expect_close(turned, reference::rotate(x, 2, RotationPairs::halves, {0.1}, {5, 9, 2}, 1.0), 1e-14, "x");
}

TEST(Rotation, RefusesWhatDoesNotFit) {
  Host host;
  const Tensor x = host.poisoned(DType::fp64, {3, 6}), positions = host.integers<std::int64_t>({3}, {0, 1, 2});
  const auto with = [&](std::int64_t width, std::int64_t half, const Tensor& places) {
    rotate(host.execution, {width, RotationPairs::halves, host.poisoned(DType::fp64, {half}), 1.0}, places, false, x);
  };
  EXPECT_THROW(with(4, 1, positions), InternalError);
  EXPECT_THROW(with(3, 2, positions), InternalError);
  EXPECT_THROW(with(6, 3, host.integers<std::int64_t>({2}, {0, 1})), InternalError);
}

TEST(Rotation, FrequenciesOfThePublicCode) {
  testing::expect_close(rotary_frequencies(10000.0, 8), {1.0, 0.1, 0.01, 0.001}, 1e-15, "rope");
  testing::expect_close(rotary_frequencies_with_end(10000.0, 10), {1.0, 0.1, 0.01, 0.001, 0.0001}, 1e-15, "both ends");
  EXPECT_EQ(rotary_frequencies_with_end(10000.0, 2), Values(1, 1.0));
  // transformers' _compute_llama3_parameters of theta 500000, 16 columns, factor 8, low 1, high 4, 8192 tokens.
  const Values scaled = scale_frequencies(rotary_frequencies(500000.0, 16), {8.0, 1.0, 4.0, 8192.0});
  const Values expected = {1.0,
                           0.19392274474868576,
                           0.03760603093086393,
                           0.007292664737217109,
                           0.0005248461609929547,
                           3.428102195952591e-05,
                           6.647869871181235e-06,
                           1.2891731721515574e-06};
  ASSERT_EQ(scaled.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(scaled[i] / expected[i], 1.0, 1e-13) << i;
}

}  // namespace
}  // namespace fulmen
