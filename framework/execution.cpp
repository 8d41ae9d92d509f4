// The scratch arena, and the stream that a run works on.
#include "framework/execution.h"

#include <algorithm>

#include "framework/gpu.h"

namespace fulmen {

namespace {
constexpr std::size_t least_block = std::size_t{8} << 20;
constexpr std::size_t alignment = 256;
}  // namespace

ExecutionResources::ExecutionResources(Device device, bool deterministic)
    : scratch_(device, MemoryKind::workspace, ledger_),
      execution_{device,        device.kind == DeviceKind::cuda ? gpu::create_stream(device) : Stream{device, nullptr},
                 &scratch_,     &ledger_,
                 deterministic, 0,
                 nullptr} {}

ExecutionResources::ExecutionResources(Planning, Device device)
    : ledger_(MemoryLedger::Purpose::planning),
      scratch_(device, MemoryKind::workspace, ledger_),
      execution_{device, Stream{}, &scratch_, &ledger_, false, 0, nullptr} {}

ExecutionResources::~ExecutionResources() {
  if (execution_.stream.handle != nullptr) gpu::destroy_stream(execution_.stream);
}

Tensor Arena::take(DType dtype, const Shape& shape) {
  // At least one unit, so that a tensor without elements still is not null.
  const std::size_t asked = static_cast<std::size_t>(elements_of(shape)) * size_of(dtype);
  const std::size_t bytes = std::max((asked + alignment - 1) / alignment, std::size_t{1}) * alignment;
  most_ = std::max(most_, taken_ + bytes);
  if (taken_ == 0 && !blocks_.empty() && (blocks_.size() > 1 || blocks_[0].bytes() < bytes)) {
    blocks_.clear();  // before the block that replaces them is made
    blocks_.emplace_back(device_, std::max(most_, least_block), kind_, *ledger_);
    block_ = used_ = 0;
  }
  taken_ += bytes;
  // Later blocks are unused here: stack order gave them back earlier.
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes()) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    blocks_.emplace_back(device_, std::max(bytes, least_block), kind_, *ledger_);
    used_ = 0;
  }
  void* data = static_cast<std::byte*>(blocks_[block_].data()) + used_;
  used_ += bytes;
  return Tensor(data, dtype, shape, device_);
}

}  // namespace fulmen
