// A micro-batch's place in device memory.
#include "train/micro_batch_buffers.h"

#include <algorithm>
#include <cstring>

#include "framework/transfer.h"

namespace fulmen {

namespace {

// Calls f(values, view, shape) for each array of a batch: the list that placing and copying share. The last array,
// whose length differs from batch to batch, is copied as far as it goes.
template <class F>
void for_each_array(const Batch& batch, MicroBatch& view, const F& f) {
  const std::int64_t tokens = view.shape.tokens(), rows = view.shape.batch;
  f(batch.tokens, view.tokens, Shape{tokens});
  f(batch.targets, view.targets, Shape{tokens});
  f(batch.weights, view.weights, Shape{tokens});
  f(batch.positions, view.positions, Shape{rows, view.shape.length});
  f(batch.order.places, view.order.positions, Shape{tokens});
  f(batch.tokens_before, view.tokens_before, Shape{rows});
  f(batch.tokens_after, view.tokens_after, Shape{rows});
  f(batch.segments, view.segments, Shape{tokens + 1});
}

template <class T>
constexpr DType element_type(const std::vector<T>&) {
  return dtype_of<T>;
}

// Whether a single document fills every sample, as far as this slice knows. All slices of a sample say the same.
bool has_one_document(const Batch& batch) {
  const std::int64_t behind = batch.sample_length - batch.slice_begin - batch.length;
  const auto all = [](const std::vector<std::int64_t>& tokens, std::int64_t wanted) {
    return std::ranges::all_of(tokens, [&](std::int64_t count) { return count == wanted; });
  };
  return std::ssize(batch.segments) == batch.batch + 1 && all(batch.tokens_before, batch.slice_begin) &&
         all(batch.tokens_after, behind);
}

}  // namespace

MicroBatchBuffers::MicroBatchBuffers(const BatchShape& shape, double sample_scale, const Execution& execution) {
  constexpr std::size_t alignment = 256;
  view_.shape = shape;
  view_.sample_scale = sample_scale;
  std::size_t bytes = 0;
  std::vector<std::size_t> offsets;
  for_each_array({}, view_, [&](const auto& values, const Tensor&, const Shape& extents) {
    offsets.push_back(bytes);
    const std::size_t own = static_cast<std::size_t>(elements_of(extents)) * size_of(element_type(values));
    bytes += (own + alignment - 1) / alignment * alignment;
  });
  memory_ = OwnedTensor(execution.device, DType::uint8, {static_cast<std::int64_t>(bytes)}, MemoryKind::data,
                        *execution.ledger);
  std::size_t next = 0;
  for_each_array({}, view_, [&](const auto& values, Tensor& view, const Shape& extents) {
    std::byte* const place = static_cast<std::byte*>(memory_.view().data()) + offsets[next++];
    view = Tensor(place, element_type(values), extents, execution.device);
  });
  if (execution.plans()) return;
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
  view_.loss_scale = loss_scale;
  if (execution.plans()) {
    view_.segments = Tensor(view_.segments.data(), DType::int64, {view_.shape.batch + 1}, execution.device);
    view_.order.distinct = view_.order.longest_run = view_.shape.tokens();
    return view_;
  }
  FULMEN_CHECK(batch.order.places.size() == batch.tokens.size(), "an order of {} for {} tokens",
               batch.order.places.size(), batch.tokens.size());
  const Tensor& memory = memory_.view();
  const auto segments = static_cast<std::int64_t>(batch.segments.size());
  FULMEN_CHECK(segments <= view_.shape.tokens() + 1, "{} segments in {} tokens", segments - 1, view_.shape.tokens());
  view_.one_document = has_one_document(batch);
  view_.segments = Tensor(view_.segments.data(), DType::int64, {segments}, execution.device);
  view_.order.distinct = batch.order.distinct;
  view_.order.longest_run = batch.order.longest_run;

  if (copied_) copied_.synchronize();
  std::size_t used = 0;
  for_each_array(batch, view_, [&](const auto& values, const Tensor& to, const Shape&) {
    const auto offset =
        static_cast<std::size_t>(static_cast<std::byte*>(to.data()) - static_cast<std::byte*>(memory.data()));
    std::memcpy(staging() + offset, values.data(), to.bytes());
    used = offset + to.bytes();
  });
  copy_to_device(execution, staging(), memory.slice(0, 0, static_cast<std::int64_t>(used)));
  if (copied_) copied_.record(execution.stream);
  return view_;
}

}  // namespace fulmen
