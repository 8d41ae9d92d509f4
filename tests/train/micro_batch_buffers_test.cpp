// A batch as layers see it, field by field, and batch after batch at the same addresses.
#include "train/micro_batch_buffers.h"

#include <gtest/gtest.h>

#include "framework/gpu.h"
#include "framework/transfer.h"
#include "tests/kernels/kernel_test.h"
#include "tests/train/sample_batches.h"

namespace fulmen {
namespace {

TEST(MicroBatchBuffers, HoldABatch) {
  ExecutionResources resources(testing::test_device());
  const Execution& execution = resources.execution();
  MicroBatchBuffers buffers({sample_rows, 21}, 0.25, execution);
  const Tensor scale = testing::Host().tensor(DType::fp64, {1}, {0.5});
  const void* address = nullptr;
  for (const std::int64_t begin : {0, 7}) {
    const Batch batch = sample_slice(40, {begin, begin + 21});
    const MicroBatch& view = buffers.fill(batch, scale, execution);
    if (execution.device.kind == DeviceKind::cuda) gpu::synchronize(execution.stream);
    EXPECT_EQ(view.shape.batch, sample_rows);
    EXPECT_EQ(view.shape.length, 21);
    EXPECT_EQ(testing::read_integers<std::int32_t>(view.tokens), batch.tokens);
    EXPECT_EQ(testing::read_integers<std::int32_t>(view.targets), batch.targets);
    EXPECT_EQ(testing::read_integers<float>(view.weights), batch.weights);
    EXPECT_EQ(testing::read_integers<std::int64_t>(view.positions), batch.positions);
    EXPECT_EQ(testing::read_integers<std::int64_t>(view.segments), batch.segments);
    EXPECT_EQ(testing::read_integers<std::int64_t>(view.tokens_before), batch.tokens_before);
    EXPECT_EQ(testing::read_integers<std::int64_t>(view.tokens_after), batch.tokens_after);
    EXPECT_EQ(testing::read_integers<std::int32_t>(view.order.positions), batch.order.places);
    EXPECT_EQ(view.order.distinct, batch.order.distinct);
    EXPECT_EQ(view.order.longest_run, batch.order.longest_run);
    EXPECT_EQ(view.loss_scale.data(), scale.data());
    if (address != nullptr) {
      EXPECT_EQ(view.tokens.data(), address);
    }
    address = view.tokens.data();
  }
}

TEST(MicroBatchBuffers, RefuseABatchWithoutItsOrder) {
  ExecutionResources resources(testing::test_device());
  MicroBatchBuffers buffers({sample_rows, 21}, 0.25, resources.execution());
  Batch batch = sample_slice(40, {0, 21});
  batch.order = {};
  EXPECT_THROW(buffers.fill(batch, {}, resources.execution()), InternalError);
}

}  // namespace
}  // namespace fulmen
