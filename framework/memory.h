// Owned device memory, counted by what it is for.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "framework/device.h"

namespace fulmen {

enum class MemoryKind : std::uint8_t { weights, gradients, optimizer, activations, workspace, communication, data };
inline constexpr std::size_t memory_kinds = 7;
std::string_view name_of(MemoryKind kind);

// Bytes held now and at most, by kind. Every Buffer of a run is entered in the run's one ledger.
//
// A planning ledger counts what a run would hold. Its buffers have sizes and addresses without memory behind them.
// Kernels, copies and planned communicators touch none. So the code that allocates is the code that counts.
class MemoryLedger {
 public:
  enum class Purpose : std::uint8_t { holding, planning };
  explicit MemoryLedger(Purpose purpose = Purpose::holding) : purpose_(purpose) {}
  bool plans() const { return purpose_ == Purpose::planning; }
  // An address for `bytes` that do not exist, different from all others of this ledger; for planning.
  void* planned_address(std::size_t bytes);

  void add(MemoryKind kind, std::size_t bytes);
  void remove(MemoryKind kind, std::size_t bytes);
  std::size_t current(MemoryKind kind) const { return current_[static_cast<std::size_t>(kind)]; }
  std::size_t peak(MemoryKind kind) const { return peak_[static_cast<std::size_t>(kind)]; }
  std::size_t current_total() const { return total_; }
  std::size_t peak_total() const { return peak_total_; }
  // "weights 1.5 GiB, gradients ...": the most that was held of each kind, not all at one time.
  std::string peaks() const;
  // One line per kind: current and peak.
  std::string breakdown() const;

 private:
  Purpose purpose_;
  std::uintptr_t next_address_ = std::uintptr_t{1} << 20;
  std::array<std::size_t, memory_kinds> current_{};
  std::array<std::size_t, memory_kinds> peak_{};
  std::size_t total_ = 0;
  std::size_t peak_total_ = 0;
};

// Owns `bytes` of zeroed memory on a device, aligned to 256 bytes, entered in a ledger that must outlive it. With a
// planning ledger it has an address alone. Move-only. Throws UserError with the ledger's breakdown when the memory is
// not to be had.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device device, std::size_t bytes, MemoryKind kind, MemoryLedger& ledger);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

 private:
  void release() noexcept;

  Device device_;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
  MemoryKind kind_ = MemoryKind::workspace;
  MemoryLedger* ledger_ = nullptr;
};

}  // namespace fulmen
