// The gated linear unit: against the oracle, against finite differences, strided and in place.
#include "kernels/gated_linear_unit.h"

#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

constexpr Activation activations[] = {Activation::none, Activation::silu, Activation::sigmoid};

TEST(GatedLinearUnit, EqualsTheOracle) {
  std::uint64_t stream = 80000;
  for (const std::int64_t width : {1, 3, 16, 77, 704}) {
    for (const DType dtype : {DType::fp64, DType::fp32}) {
      for (const Activation activation : activations) {
        Random random(++stream);
        Host host;
        const std::int64_t tokens = random.integer(1, 60);
        const double tolerance = testing::tolerance_of(dtype);
        const auto values = [&] { return testing::rounded(random.normals(tokens * width, 3.0), dtype); };
        const Values a = values(), b = values(), d_y = values();
        const Tensor fused = host.poisoned(dtype, {tokens, 2 * width + 3});
        const Tensor as = fused.slice(1, 0, width), bs = fused.slice(1, width, 2 * width);
        testing::write(as, a), testing::write(bs, b);
        const Tensor d_ys = host.strided(dtype, tokens, width, 1, d_y);
        const Tensor y = host.poisoned_strided(dtype, tokens, width, 2);
        gated_linear_unit_forward(host.execution, as, bs, activation, y);
        testing::expect_close(y, reference::gated_linear_unit(a, b, activation), tolerance, "y");
        const auto expected = reference::gated_linear_unit_backward(a, b, activation, d_y);
        const Tensor d_a = host.poisoned_strided(dtype, tokens, width, 2);
        const Tensor d_b = host.poisoned_strided(dtype, tokens, width, 5);
        gated_linear_unit_backward(host.execution, d_ys, as, bs, activation, d_a, d_b);
        testing::expect_close(d_a, expected.d_a, tolerance, "d_a");
        testing::expect_close(d_b, expected.d_b, tolerance, "d_b");
        gated_linear_unit_backward(host.execution, d_ys, as, bs, activation, as, bs);
        EXPECT_EQ(testing::read(as), testing::read(d_a)) << "in place";
        EXPECT_EQ(testing::read(bs), testing::read(d_b)) << "in place";
      }
    }
  }
}

TEST(GatedLinearUnit, BackwardEqualsFiniteDifferences) {
  Random random(81000);
  for (const Activation activation : activations) {
    Host host;
    const Values d_y = random.normals(5 * 7);
    const Tensor a = host.tensor(DType::fp64, {5, 7}, random.normals(35));
    const Tensor b = host.tensor(DType::fp64, {5, 7}, random.normals(35));
    const Tensor y = host.poisoned(DType::fp64, {5, 7});
    const Tensor d_a = host.poisoned(DType::fp64, {5, 7}), d_b = host.poisoned(DType::fp64, {5, 7});
    const auto loss = [&] {
      gated_linear_unit_forward(host.execution, a, b, activation, y);
      return testing::weighted_sum(d_y, testing::read(y));
    };
    gated_linear_unit_backward(host.execution, host.tensor(DType::fp64, {5, 7}, d_y), a, b, activation, d_a, d_b);
    testing::expect_close(d_a, testing::finite_differences(a, 1e-3, loss), 1e-8, "d_a");
    testing::expect_close(d_b, testing::finite_differences(b, 1e-3, loss), 1e-8, "d_b");
  }
}

}  // namespace
}  // namespace fulmen
