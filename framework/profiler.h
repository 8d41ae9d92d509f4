// Where the time of a step goes. Each kernel states its work, so that its time can be held against its floor. Each
// communication states its stream, so that hidden and exposed communication are told apart.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "framework/gpu.h"

namespace fulmen {

// The work of one kind of kernel since the profiler was cleared.
struct ProfileEntry {
  std::int64_t calls = 0;
  double seconds = 0.0;
  double operations = 0.0;  // floating-point, a multiply-add counts two
  double bytes = 0.0;       // that must be read or written once

  // The least time this work takes at these rates: the larger of arithmetic and traffic, call by call.
  double floor_seconds = 0.0;
};

// One kernel or communication: when it ran, in seconds since the profiler was cleared.
struct ProfileInterval {
  const char* name = nullptr;
  int lane = 0;  // 0: the stream of the kernels; others: streams of communication, in order of first use
  bool communication = false;
  double begin = 0.0, end = 0.0;
};

class Profiler {
 public:
  // Rates of this device as measured: operations and bytes per second. Kernels run on the stream: on a
  // GPU times are taken by events in the streams, and read when entries() or intervals() is called.
  Profiler(double operations_per_second, double bytes_per_second, Stream stream = {});

  // Forgets everything; intervals count from now. On a GPU it waits for the work that was recorded.
  void clear();
  // On a GPU both wait for the work that was recorded.
  const std::map<std::string, ProfileEntry>& entries();
  const std::vector<ProfileInterval>& intervals();

 private:
  friend class ProfileScope;
  using Clock = std::chrono::steady_clock;

  // A timed interval: marks in a stream on a GPU, points in time on the CPU. Read when its end has passed.
  struct Timed {
    gpu::Event start, end;
    const char* name = nullptr;  // null until it has ended
    int lane = 0;
    bool communication = false;
    double operations = 0.0, bytes = 0.0;
  };

  bool on_gpu() const { return stream_.device.kind == DeviceKind::cuda; }
  std::size_t begin_on_gpu(Stream stream);
  void end_on_gpu(std::size_t begun, Stream stream, const char* name, bool communication, double operations,
                  double bytes);
  void record(const ProfileInterval& interval, double operations, double bytes);
  double since_origin(Clock::time_point time) const { return std::chrono::duration<double>(time - origin_).count(); }
  int lane_of(Stream stream);
  void read_pending();

  double operations_per_second_, bytes_per_second_;
  Stream stream_;
  Clock::time_point origin_ = Clock::now();
  gpu::Event origin_event_;  // on a GPU
  std::map<std::string, ProfileEntry> entries_;
  std::vector<ProfileInterval> intervals_;
  std::vector<void*> lanes_;  // streams by lane
  std::vector<Timed> timed_;  // the first `pending_` are to be read; the rest are kept for use again
  std::size_t pending_ = 0;
};

// Times a scope into a profiler; costs a test of a pointer when there is none. Scopes may nest.
class ProfileScope {
 public:
  // A kernel on the profiler's own stream.
  ProfileScope(Profiler* profiler, const char* kernel, double operations, double bytes)
      : ProfileScope(profiler, profiler ? profiler->stream_ : Stream{}, kernel, false, operations, bytes) {}
  // Communication on the profiler's own stream, which waits for it, or on another.
  static ProfileScope communication(Profiler* profiler, const char* name) {
    return ProfileScope(profiler, profiler ? profiler->stream_ : Stream{}, name, true, 0.0, 0.0);
  }
  static ProfileScope communication(Profiler* profiler, const char* name, Stream stream) {
    return ProfileScope(profiler, stream, name, true, 0.0, 0.0);
  }
  ~ProfileScope() {
    if (!profiler_) return;
    if (profiler_->on_gpu()) {
      profiler_->end_on_gpu(begun_, stream_, name_, communication_, operations_, bytes_);
      return;
    }
    profiler_->record(
        {name_, 0, communication_, profiler_->since_origin(start_), profiler_->since_origin(Profiler::Clock::now())},
        operations_, bytes_);
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  ProfileScope(Profiler* profiler, Stream stream, const char* name, bool communication, double operations, double bytes)
      : profiler_(profiler),
        stream_(stream),
        name_(name),
        communication_(communication),
        operations_(operations),
        bytes_(bytes) {
    if (!profiler_) return;
    if (profiler_->on_gpu())
      begun_ = profiler_->begin_on_gpu(stream_);
    else
      start_ = Profiler::Clock::now();
  }

  Profiler* profiler_;
  Stream stream_;
  const char* name_;
  bool communication_;
  double operations_, bytes_;
  Profiler::Clock::time_point start_;
  std::size_t begun_ = 0;
};

}  // namespace fulmen
