// A micro-batch's place in device memory.
#include "train/micro_batch_buffers.h"

#include <cstring>

#include "framework/transfer.h"

namespace fulmen {

MicroBatchBuffers::MicroBatchBuffers(const BatchShape& shape, const Execution& execution) {
  constexpr std::size_t alignment = 256;
  std::size_t bytes = 0;
  std::vector<std::size_t> offsets;
  const auto place = [&](DType dtype, std::int64_t elements) {
    offsets.push_back(bytes);
    bytes += (static_cast<std::size_t>(elements) * size_of(dtype) + alignment - 1) / alignment * alignment;
  };
  const std::int64_t tokens = shape.tokens();
  for (const DType dtype : {DType::int32, DType::int32, DType::fp32, DType::int64, DType::int32}) place(dtype, tokens);
  for (int side = 0; side < 2; ++side) place(DType::int64, shape.batch);
  place(DType::int64, tokens + 1);

  memory_ = OwnedTensor(execution.device, DType::uint8, {static_cast<std::int64_t>(bytes)}, MemoryKind::data,
                        *execution.ledger);
  const auto view = [&](std::size_t i, DType dtype, const Shape& s) {
    return Tensor(static_cast<std::byte*>(memory_.view().data()) + offsets[i], dtype, s, execution.device);
  };
  view_ = {shape,
           view(0, DType::int32, {tokens}),
           view(1, DType::int32, {tokens}),
           view(2, DType::fp32, {tokens}),
           view(3, DType::int64, {shape.batch, shape.length}),
           view(7, DType::int64, {tokens + 1}),
           view(5, DType::int64, {shape.batch}),
           view(6, DType::int64, {shape.batch}),
           {view(4, DType::int32, {tokens})},
           {}};
  if (execution.device.kind == DeviceKind::cuda) {
    pinned_.reset(static_cast<std::byte*>(gpu::allocate_pinned(bytes)));
    copied_ = gpu::Event(execution.device);
    copied_.record(execution.stream);
  } else {
    pageable_.resize(bytes);
  }
}

const MicroBatch& MicroBatchBuffers::fill(const Batch& batch, const Tensor& loss_scale, const Execution& execution) {
  FULMEN_CHECK(batch.batch == view_.shape.batch && batch.length == view_.shape.length,
               "a batch of {} x {} for buffers of {} x {}", batch.batch, batch.length, view_.shape.batch,
               view_.shape.length);
  FULMEN_CHECK(batch.order.places.size() == batch.tokens.size(), "an order of {} for {} tokens",
               batch.order.places.size(), batch.tokens.size());
  const Tensor& memory = memory_.view();
  const auto segments = static_cast<std::int64_t>(batch.segments.size());
  FULMEN_CHECK(segments <= view_.shape.tokens() + 1, "{} segments in {} tokens", segments - 1, view_.shape.tokens());
  view_.segments = Tensor(view_.segments.data(), DType::int64, {segments}, execution.device);
  view_.order.distinct = batch.order.distinct;
  view_.order.longest_run = batch.order.longest_run;
  view_.loss_scale = loss_scale;

  if (copied_) copied_.synchronize();
  std::size_t used = 0;
  const auto put = [&](const auto& values, const Tensor& to) {
    const auto offset =
        static_cast<std::size_t>(static_cast<std::byte*>(to.data()) - static_cast<std::byte*>(memory.data()));
    std::memcpy(staging() + offset, values.data(), to.bytes());
    used = offset + to.bytes();
  };
  put(batch.tokens, view_.tokens);
  put(batch.targets, view_.targets);
  put(batch.weights, view_.weights);
  put(batch.positions, view_.positions);
  put(batch.order.places, view_.order.positions);
  put(batch.tokens_before, view_.tokens_before);
  put(batch.tokens_after, view_.tokens_after);
  put(batch.segments, view_.segments);
  copy_to_device(execution, staging(), memory.slice(0, 0, static_cast<std::int64_t>(used)));
  if (copied_) copied_.record(execution.stream);
  return view_;
}

}  // namespace fulmen
