// A micro-batch's place in device memory.
#include "train/micro_batch_buffers.h"

#include "framework/transfer.h"

namespace fulmen {

MicroBatchBuffers::MicroBatchBuffers(const BatchShape& shape, const Execution& execution) {
  const auto allocate = [&](DType dtype, const Shape& s) {
    return OwnedTensor(execution.device, dtype, s, MemoryKind::data, *execution.ledger);
  };
  tokens_ = allocate(DType::int32, {shape.tokens()});
  targets_ = allocate(DType::int32, {shape.tokens()});
  weights_ = allocate(DType::fp32, {shape.tokens()});
  positions_ = allocate(DType::int64, {shape.batch, shape.length});
  segments_ = allocate(DType::int64, {shape.tokens() + 1});
  view_ = {shape, tokens_, targets_, weights_, positions_, segments_, {}};
}

const MicroBatch& MicroBatchBuffers::fill(const Batch& batch, const Tensor& loss_scale, const Execution& execution) {
  FULMEN_CHECK(batch.batch == view_.shape.batch && batch.length == view_.shape.length,
               "a batch of {} x {} for buffers of {} x {}", batch.batch, batch.length, view_.shape.batch, view_.shape.length);
  view_.segments = segments_.view().slice(0, 0, static_cast<std::int64_t>(batch.segments.size()));
  view_.loss_scale = loss_scale;
  copy_to_device(execution, batch.tokens.data(), view_.tokens);
  copy_to_device(execution, batch.targets.data(), view_.targets);
  copy_to_device(execution, batch.weights.data(), view_.weights);
  copy_to_device(execution, batch.positions.data(), view_.positions);
  copy_to_device(execution, batch.segments.data(), view_.segments);
  return view_;
}

}  // namespace fulmen
