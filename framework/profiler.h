// Where the time of a step goes: each kernel states its work, so that its time can be held against its floor.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "framework/gpu.h"

namespace fulmen {

// What one kind of kernel did since the profiler was cleared.
struct ProfileEntry {
  std::int64_t calls = 0;
  double seconds = 0.0;
  double operations = 0.0;   // floating-point, a multiply-add counts two
  double bytes = 0.0;        // that must be read or written once

  // The least time this work takes at these rates: the larger of arithmetic and traffic, call by call.
  double floor_seconds = 0.0;
};

class Profiler {
 public:
  // Rates of this device as measured: operations and bytes per second. The stream is the one that kernels run on: on a
  // GPU their times are taken by events in it, and read when entries() is called.
  Profiler(double operations_per_second, double bytes_per_second, Stream stream = {})
      : operations_per_second_(operations_per_second), bytes_per_second_(bytes_per_second), stream_(stream) {}

  void record(const char* kernel, double seconds, double operations, double bytes);
  void clear();
  // On a GPU it waits for the work that was recorded.
  const std::map<std::string, ProfileEntry>& entries();
  bool on_gpu() const { return stream_.device.kind == DeviceKind::cuda; }

  // On a GPU: marks the beginning and the end of a kernel in the stream. Scopes may nest.
  std::size_t begin_on_gpu();
  void end_on_gpu(std::size_t begun, const char* kernel, double operations, double bytes);

 private:
  struct Timed {
    gpu::Event start, end;
    const char* kernel = nullptr;   // null until it has ended
    double operations = 0.0, bytes = 0.0;
  };

  double operations_per_second_, bytes_per_second_;
  Stream stream_;
  std::map<std::string, ProfileEntry> entries_;
  std::vector<Timed> timed_;      // the first `pending_` are to be read; the rest are kept for use again
  std::size_t pending_ = 0;
};

// Times a scope into a profiler; costs a test of a pointer when there is none.
class ProfileScope {
 public:
  ProfileScope(Profiler* profiler, const char* kernel, double operations, double bytes)
      : profiler_(profiler), kernel_(kernel), operations_(operations), bytes_(bytes) {
    if (!profiler_) return;
    if (profiler_->on_gpu())
      begun_ = profiler_->begin_on_gpu();
    else
      start_ = std::chrono::steady_clock::now();
  }
  ~ProfileScope() {
    if (!profiler_) return;
    if (profiler_->on_gpu()) {
      profiler_->end_on_gpu(begun_, kernel_, operations_, bytes_);
      return;
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    profiler_->record(kernel_, elapsed.count(), operations_, bytes_);
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  Profiler* profiler_;
  const char* kernel_;
  double operations_, bytes_;
  std::chrono::steady_clock::time_point start_;
  std::size_t begun_ = 0;
};

}  // namespace fulmen
