// Training steps against the authors' own: losses, gradient norms and final weights of AdamW with warm-up, cosine and
// clip.
#include "tests/golden.h"

#include <gtest/gtest.h>

#include "data/batch_loader.h"
#include "tests/kernels/kernel_test.h"
#include "train/learning_rate.h"
#include "train/model_runner.h"
#include "train/optimizer.h"

namespace fulmen {
namespace {

// The golden stream as one batch of rows that follow each other.
Batch stream_batch(const Golden& golden) {
  const Shape shape = golden.shape("/tokens");
  const std::vector<std::int32_t> stream = golden.tokens("/stream");
  Batch batch = make_batch(shape[0], shape[1] - 1);
  batch.segments.clear();
  for (std::int64_t b = 0; b < batch.batch; ++b) {
    batch.segments.push_back(b * batch.length);
    for (std::int64_t t = 0; t < batch.length; ++t) {
      const auto i = static_cast<std::size_t>(b * batch.length + t);
      batch.tokens[i] = stream[i];
      batch.targets[i] = stream[i + 1];
      batch.weights[i] = 1.0f;
      batch.positions[i] = t;
    }
  }
  batch.segments.push_back(batch.batch * batch.length);
  batch.order = stable_order(batch.tokens);
  return batch;
}

// Row `row` of a batch, as a batch of its own.
Batch row_of(const Batch& whole, std::int64_t row) {
  Batch batch = make_batch(1, whole.length);
  const auto begin = static_cast<std::ptrdiff_t>(row * whole.length),
             end = begin + static_cast<std::ptrdiff_t>(whole.length);
  batch.tokens.assign(whole.tokens.begin() + begin, whole.tokens.begin() + end);
  batch.targets.assign(whole.targets.begin() + begin, whole.targets.begin() + end);
  batch.weights.assign(whole.weights.begin() + begin, whole.weights.begin() + end);
  batch.positions.assign(whole.positions.begin() + begin, whole.positions.begin() + end);
  batch.segments = {0, whole.length};
  batch.order = stable_order(batch.tokens);
  return batch;
}

class GoldenTraining : public ::testing::TestWithParam<std::tuple<const char*, bool, DType>> {};

TEST_P(GoldenTraining, LossesNormsAndFinalWeights) {
  const auto [file, accumulate, dtype] = GetParam();  // all rows at once, or row by row
  const double tolerance = dtype == DType::fp64 ? 1e-10 : 1e-5;
  // Where gradients are near zero AdamW makes steps of full size from their rounding.
  const double weights_tolerance = dtype == DType::fp64 ? 1e-6 : 1e-3;
  const Golden golden(file);
  const TransnormerConfig config = golden.config();
  const Batch whole = stream_batch(golden);
  std::vector<Batch> batches = {whole};
  if (accumulate) {
    batches.clear();
    for (std::int64_t row = 0; row < whole.batch; ++row) batches.push_back(row_of(whole, row));
  }
  ExecutionResources resources(testing::test_device());
  const Execution& execution = resources.execution();
  const auto self = make_self_communicator();
  Mesh mesh(MeshShape{}, *self);
  ModelRunnerOptions options;
  options.precision = {dtype, dtype};
  options.micro_batch = {accumulate ? 1 : whole.batch, whole.length};
  options.micro_batches = static_cast<int>(batches.size());
  ModelRunner runner(config, options, mesh, execution);
  golden.load_weights(runner.parameters(), execution);
  Optimizer optimizer(OptimizerConfig{}, 1.0, runner.parameters(), mesh, execution);
  LearningRateConfig schedule;
  schedule.kind = "cosine";
  schedule.warmup_steps = 2;
  schedule.minimum = 3e-4;

  const std::vector<double> losses = golden.values("/train/loss"), norms = golden.values("/train/grad_norm"),
                            rates = golden.values("/train/lr");
  const auto steps = static_cast<std::int64_t>(norms.size());
  for (std::int64_t t = 0; t < steps; ++t) {
    const auto i = static_cast<std::size_t>(t);
    const double rate = learning_rate(schedule, 3e-3, t, steps);
    EXPECT_NEAR(rate, rates[i], 1e-15);
    const StepLoss loss = runner.accumulate(batches, [&] { optimizer.step(rate, t); });
    EXPECT_NEAR(loss.loss_nats, losses[i], tolerance * losses[i]) << "step " << t;
    EXPECT_NEAR(optimizer.gradient_norm(), norms[i], tolerance * norms[i]) << "step " << t;
  }
  const StepLoss last = runner.accumulate(batches, {});
  EXPECT_NEAR(last.loss_nats, losses.back(), tolerance * losses.back());
  std::size_t compared = 0;
  for (const ParameterPiece& piece : runner.parameters().pieces(runner.parameters().flat_weights())) {
    if (piece.memory.size(0) != piece.global_shape[0]) continue;  // a part of a fused matrix
    EXPECT_LE(relative_difference(host_values(execution, piece.memory), golden.values("/train/final/" + piece.tensor)),
              weights_tolerance)
        << piece.tensor;
    ++compared;
  }
  EXPECT_EQ(compared, static_cast<std::size_t>(2 + 4 * config.layers));
}

INSTANTIATE_TEST_SUITE_P(Files, GoldenTraining,
                         ::testing::Combine(::testing::Values("tnl_small", "tnl_wide"), ::testing::Bool(),
                                            ::testing::Values(DType::fp64, DType::fp32)),
                         [](const auto& info) {
                           return fmt::format("{}_{}_{}", std::get<0>(info.param),
                                              std::get<1>(info.param) ? "row_by_row" : "at_once",
                                              name_of(std::get<2>(info.param)));
                         });

}  // namespace
}  // namespace fulmen
