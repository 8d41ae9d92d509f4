// Allocation of device memory and its bookkeeping.
#include "framework/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/gpu.h"
#include "framework/text.h"

namespace fulmen {

namespace {

constexpr std::size_t alignment = 256;
// From this size on, memory is mapped: its pages are zero without being written, and are placed at their first use.
constexpr std::size_t mapped_from = std::size_t{1} << 20;

constexpr std::size_t round_up(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

void* allocate_zeroed(Device device, std::size_t bytes) {
  if (device.kind == DeviceKind::cuda) return gpu::allocate(device.index, bytes);
  if (bytes >= mapped_from) {
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return data == MAP_FAILED ? nullptr : data;
  }
  void* data = std::aligned_alloc(alignment, round_up(bytes));
  if (data != nullptr) std::memset(data, 0, round_up(bytes));
  return data;
}

void deallocate(Device device, void* data, std::size_t bytes) {
  if (device.kind == DeviceKind::cuda) {
    gpu::release(device.index, data);
  } else if (bytes >= mapped_from) {
    munmap(data, bytes);
  } else {
    std::free(data);
  }
}

// " (12 GiB of 140 GiB are free)" on a GPU, where it is known.
std::string availability(Device device) {
  if (device.kind != DeviceKind::cuda) return {};
  const gpu::MemoryUse use = gpu::memory_use(device.index);
  return fmt::format(" ({} of the GPU's {} are free)", human_bytes(static_cast<double>(use.free_bytes)),
                     human_bytes(static_cast<double>(use.total_bytes)));
}

}  // namespace

std::string_view name_of(MemoryKind kind) {
  static constexpr std::array<std::string_view, memory_kinds> names{
      "weights", "gradients", "optimizer", "activations", "workspace", "communication", "data"};
  return names[static_cast<std::size_t>(kind)];
}

void* MemoryLedger::planned_address(std::size_t bytes) {
  FULMEN_CHECK(plans(), "an address without memory");
  return reinterpret_cast<void*>(std::exchange(next_address_, next_address_ + round_up(bytes)));
}

void MemoryLedger::add(MemoryKind kind, std::size_t bytes) {
  const auto k = static_cast<std::size_t>(kind);
  current_[k] += bytes;
  total_ += bytes;
  peak_[k] = std::max(peak_[k], current_[k]);
  peak_total_ = std::max(peak_total_, total_);
}

void MemoryLedger::remove(MemoryKind kind, std::size_t bytes) {
  const auto k = static_cast<std::size_t>(kind);
  FULMEN_CHECK(bytes <= current_[k], "{} bytes of {} given back, {} held", bytes, name_of(kind), current_[k]);
  current_[k] -= bytes;
  total_ -= bytes;
}

std::string MemoryLedger::peaks() const {
  std::vector<std::string> list;
  for (std::size_t k = 0; k < memory_kinds; ++k)
    list.push_back(
        fmt::format("{} {}", name_of(static_cast<MemoryKind>(k)), human_bytes(static_cast<double>(peak_[k]))));
  return join(list, ", ");
}

std::string MemoryLedger::breakdown() const {
  std::string lines;
  const auto line = [&](std::string_view name, std::size_t current, std::size_t peak) {
    lines += fmt::format("  {:<13} {:>12} now {:>12} at most\n", name, human_bytes(static_cast<double>(current)),
                         human_bytes(static_cast<double>(peak)));
  };
  for (std::size_t k = 0; k < memory_kinds; ++k) line(name_of(static_cast<MemoryKind>(k)), current_[k], peak_[k]);
  line("total", total_, peak_total_);
  return lines;
}

Buffer::Buffer(Device device, std::size_t bytes, MemoryKind kind, MemoryLedger& ledger)
    : device_(device), bytes_(bytes), kind_(kind), ledger_(&ledger) {
  if (!ledger.plans()) gpu::require(device);
  if (bytes == 0) return;
  data_ = ledger.plans() ? ledger.planned_address(bytes) : allocate_zeroed(device, bytes);
  if (data_ == nullptr) {
    throw UserError(
        device.kind == DeviceKind::cuda ? "GPU memory" : "memory",
        fmt::format("{} for {} could not be had{}; this process holds\n{}", human_bytes(static_cast<double>(bytes)),
                    name_of(kind), availability(device), ledger.breakdown()),
        "lower train.micro_batch or data.sequence_length (activations, workspace), or spread the model over more "
        "ranks with parallel.tensor or parallel.pipeline (weights, gradients, optimizer)");
  }
  ledger_->add(kind_, bytes_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : device_(other.device_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      kind_(other.kind_),
      ledger_(other.ledger_) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this == &other) return *this;
  release();
  device_ = other.device_;
  data_ = std::exchange(other.data_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  kind_ = other.kind_;
  ledger_ = other.ledger_;
  return *this;
}

Buffer::~Buffer() { release(); }

void Buffer::release() noexcept {
  if (data_ == nullptr) return;
  if (!ledger_->plans()) deallocate(device_, data_, bytes_);
  ledger_->remove(kind_, bytes_);
  data_ = nullptr;
  bytes_ = 0;
}

}  // namespace fulmen
