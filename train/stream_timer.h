// How long pieces of work take on the device, wherever the host is meanwhile.
#pragma once

#include <chrono>
#include <vector>

#include "framework/gpu.h"

namespace fulmen {

// Sums the time between start() and stop(): the host's on the CPU, the stream's on a GPU.
class StreamTimer {
 public:
  explicit StreamTimer(Stream stream) : stream_(stream) {}

  void reset();
  void start();
  void stop();
  // Since the reset. On a GPU it waits for what was timed.
  double seconds();

 private:
  struct Span {
    gpu::Event start, end;
  };
  bool on_gpu() const { return stream_.device.kind == DeviceKind::cuda; }

  Stream stream_;
  double seconds_ = 0.0;
  std::chrono::steady_clock::time_point start_;
  std::vector<Span> spans_;  // the first `pending_` are not read yet; the rest are kept for use again
  std::size_t pending_ = 0;
};

}  // namespace fulmen
