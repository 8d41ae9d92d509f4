// AdamW over several steps, with clipping, decay and gradients wider than the parameters.
#include "kernels/adamw.h"

#include "kernels/reference/layers.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

using testing::Host;
using testing::Random;
using testing::Values;

TEST(Adamw, EqualsTheOracle) {
  std::uint64_t stream = 110000;
  const std::pair<DType, DType> dtypes[] = {
      {DType::fp64, DType::fp64}, {DType::fp32, DType::fp32}, {DType::fp32, DType::fp64}};
  for (const std::int64_t count : {1, 5, 64, 1000, 40001}) {
    for (const auto& [dtype, gradient_dtype] : dtypes) {
      for (const double scale : {1.0, 0.25}) {
        Random random(++stream);
        Host host;
        const AdamwOptions options{.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1,
                                   .learning_rate_scale = scale};
        Values parameters = testing::rounded(random.normals(count), dtype), exp_avg(count, 0.0), exp_avg_sq(count, 0.0);
        const Tensor ps = host.tensor(dtype, {count}, parameters);
        const Tensor ms = host.tensor(dtype, {count}, exp_avg), vs = host.tensor(dtype, {count}, exp_avg_sq);
        for (int step = 1; step <= 4; ++step) {
          const Values gradients = testing::rounded(random.normals(count), gradient_dtype);
          const Values scalars = {1e-2 * step, 1 - std::pow(0.9, step), 1 - std::pow(0.95, step), 1.0 / step};
          reference::adamw(parameters, gradients, exp_avg, exp_avg_sq, scalars, options);
          adamw_update(host.execution, ps, host.tensor(gradient_dtype, {count}, gradients), ms, vs,
                       host.tensor(DType::fp64, {adamw_scalars}, scalars), options);
        }
        const double tolerance = testing::tolerance_of(dtype);
        testing::expect_close(ps, parameters, tolerance, "parameters");
        testing::expect_close(ms, exp_avg, tolerance, "exp_avg");
        testing::expect_close(vs, exp_avg_sq, tolerance, "exp_avg_sq");
      }
    }
  }
}

TEST(Adamw, ClipScale) {
  Host host;
  const auto clip = [&](double square_sum, double max_norm) {
    const Tensor norm = host.poisoned(DType::fp64, {1});
    const Tensor scalars = host.tensor(DType::fp64, {adamw_scalars}, {0.1, 0.2, 0.3, -1});
    set_clip_scale(host.execution, host.tensor(DType::fp64, {1}, {square_sum}), max_norm, norm, scalars);
    const Values after = testing::read(scalars);
    EXPECT_EQ(Values(after.begin(), after.begin() + 3), (Values{0.1, 0.2, 0.3}));
    return std::pair(testing::read(norm)[0], after[3]);
  };
  EXPECT_EQ(clip(16.0, 1.0), std::pair(4.0, 1.0 / (4.0 + 1e-6)));
  EXPECT_EQ(clip(0.25, 1.0), std::pair(0.5, 1.0));
  EXPECT_EQ(clip(1e6, 0.0), std::pair(1e3, 1.0));
  EXPECT_EQ(clip(0.0, 1.0), std::pair(0.0, 1.0));
  EXPECT_TRUE(std::isnan(clip(std::nan(""), 1.0).second));
}

TEST(Adamw, RefusesUnequalLengths) {
  Host host;
  const Tensor four = host.poisoned(DType::fp32, {4}), three = host.poisoned(DType::fp32, {3});
  const Tensor scalars = host.tensor(DType::fp64, {adamw_scalars}, {0.1, 1, 1, 1});
  EXPECT_THROW(adamw_update(host.execution, four, three, four, four, scalars, {}), InternalError);
  EXPECT_THROW(adamw_update(host.execution, four, four, four, three, scalars, {}), InternalError);
}

}  // namespace
}  // namespace fulmen
