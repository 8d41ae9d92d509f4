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
  // On a GPU also what training does there: fp32 master weights and a copy of them rounded to bf16.
  struct DTypes {
    DType parameters, gradients;
    bool round = false;
  };
  std::vector<DTypes> dtypes = {{DType::fp64, DType::fp64}, {DType::fp32, DType::fp32}, {DType::fp32, DType::fp64}};
  if (testing::on_gpu()) dtypes.push_back({DType::fp32, DType::fp32, true});
  for (const std::int64_t count : {1, 5, 64, 1000, 40001}) {
    for (const auto& [dtype, gradient_dtype, round] : dtypes) {
      for (const double scale : {1.0, 0.25}) {
        Random random(++stream);
        Host host;
        const AdamwOptions options{
            .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1, .learning_rate_scale = scale};
        Values parameters = testing::rounded(random.normals(count), dtype), exp_avg(count, 0.0), exp_avg_sq(count, 0.0);
        const Tensor ps = host.tensor(dtype, {count}, parameters);
        const Tensor ms = host.tensor(dtype, {count}, exp_avg), vs = host.tensor(dtype, {count}, exp_avg_sq);
        const Tensor narrow = round ? host.poisoned(DType::bf16, {count}) : Tensor();
        for (int step = 1; step <= 4; ++step) {
          const Values gradients = testing::rounded(random.normals(count), gradient_dtype);
          const Values scalars = {1e-2 * step, 1 - std::pow(0.9, step), 1 - std::pow(0.95, step), 1.0 / step};
          reference::adamw(parameters, gradients, exp_avg, exp_avg_sq, scalars, options);
          adamw_update(host.execution, ps, host.tensor(gradient_dtype, {count}, gradients), ms, vs,
                       host.tensor(DType::fp64, {adamw_scalars}, scalars), options, narrow);
        }
        const double tolerance = testing::tolerance_of(dtype);
        testing::expect_close(ps, parameters, tolerance, "parameters");
        testing::expect_close(ms, exp_avg, tolerance, "exp_avg");
        testing::expect_close(vs, exp_avg_sq, tolerance, "exp_avg_sq");
        if (!round) continue;
        EXPECT_EQ(testing::read(narrow), testing::rounded(testing::read(ps), DType::bf16));
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

// Slices that begin anywhere, longer than one block of a GPU, and every copy that it rounds; nothing next to them
// changes.
TEST(Adamw, SlicesOfAnyAlignment) {
  struct DTypes {
    DType parameters, gradients, rounded;  // rounded as the parameters: no copy
  };
  std::vector<DTypes> dtypes = {{DType::fp64, DType::fp64, DType::fp64},
                                {DType::fp32, DType::fp32, DType::fp32},
                                {DType::fp32, DType::fp64, DType::fp32}};
  if (testing::on_gpu()) {
    dtypes.push_back({DType::fp32, DType::fp32, DType::bf16});
    dtypes.push_back({DType::fp32, DType::fp64, DType::bf16});
    dtypes.push_back({DType::fp64, DType::fp64, DType::bf16});
    dtypes.push_back({DType::fp64, DType::fp64, DType::fp32});
  }
  Random random(111000);
  const AdamwOptions options{.weight_decay = 0.1};
  for (const auto& [dtype, gradient_dtype, rounded_dtype] : dtypes) {
    for (const std::int64_t count : {3, 2048, 70003}) {
      for (const std::int64_t offset : {0, 1, 4}) {
        SCOPED_TRACE(fmt::format("{} [{}] at {}, to {}", name_of(dtype), count, offset, name_of(rounded_dtype)));
        Host host;
        Values parameters = testing::rounded(random.normals(count), dtype);
        Values exp_avg(count, 0.5), exp_avg_sq(count, 0.25);
        const Values gradients = testing::rounded(random.normals(count), gradient_dtype);
        const Values scalars = {1e-2, 0.19, 0.0975, 0.7};
        const auto slice = [&](DType type, const Values& values) {
          const Tensor part = host.poisoned(type, {count + 8}).slice(0, offset, offset + count);
          if (!values.empty()) testing::write(part, values);
          return part;
        };
        const Tensor ps = slice(dtype, parameters), ms = slice(dtype, exp_avg), vs = slice(dtype, exp_avg_sq);
        const Tensor whole = host.poisoned(rounded_dtype, {count + 8});
        const Tensor narrow = rounded_dtype == dtype ? Tensor() : whole.slice(0, offset, offset + count);
        adamw_update(host.execution, ps, slice(gradient_dtype, gradients), ms, vs,
                     host.tensor(DType::fp64, {adamw_scalars}, scalars), options, narrow);
        reference::adamw(parameters, gradients, exp_avg, exp_avg_sq, scalars, options);
        const double tolerance = testing::tolerance_of(dtype);
        testing::expect_close(ps, parameters, tolerance, "parameters");
        testing::expect_close(ms, exp_avg, tolerance, "exp_avg");
        testing::expect_close(vs, exp_avg_sq, tolerance, "exp_avg_sq");
        std::int64_t untouched = 0;
        for (const double value : testing::read(whole)) untouched += std::isnan(value);
        EXPECT_EQ(untouched, narrow ? 8 : count + 8);
        if (!narrow) continue;
        EXPECT_EQ(testing::read(narrow), testing::rounded(testing::read(ps), rounded_dtype));
      }
    }
  }
}

TEST(Adamw, NaNOfAGradientStaysInItsParameter) {
  for (const DType dtype : {DType::fp64, DType::fp32}) {
    Host host;
    Values gradients(16, 1.0);
    gradients[5] = std::nan("");
    const Tensor p = host.tensor(dtype, {16}, Values(16, 1.0));
    adamw_update(host.execution, p, host.tensor(dtype, {16}, gradients), host.tensor(dtype, {16}, Values(16, 0.0)),
                 host.tensor(dtype, {16}, Values(16, 0.0)),
                 host.tensor(DType::fp64, {adamw_scalars}, {0.1, 0.1, 0.05, 1.0}), {});
    const Values after = testing::read(p);
    for (int i = 0; i < 16; ++i) EXPECT_EQ(std::isnan(after[i]), i == 5);
  }
}

}  // namespace
}  // namespace fulmen
