// Where memory lives and kernels run.
#pragma once

#include <cstdint>

namespace fulmen {

enum class DeviceKind : std::uint8_t { cpu, cuda };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;  // the GPU's ordinal in this process; 0 on the CPU

  static Device cpu() { return {}; }
  static Device cuda(int index) { return {DeviceKind::cuda, index}; }
  friend bool operator==(const Device&, const Device&) = default;
};

// An ordered queue of work on a device, as a cheap handle. On the CPU work is complete when the call returns, and
// all streams are the same.
struct Stream {
  Device device;
  void* handle = nullptr;  // the backend's own stream
};

}  // namespace fulmen
