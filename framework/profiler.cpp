// Where the time of a step goes.
#include "framework/profiler.h"

#include <algorithm>

namespace fulmen {

void Profiler::record(const char* kernel, double seconds, double operations, double bytes) {
  ProfileEntry& entry = entries_[kernel];
  entry.calls += 1;
  entry.seconds += seconds;
  entry.operations += operations;
  entry.bytes += bytes;
  entry.floor_seconds += std::max(operations / operations_per_second_, bytes / bytes_per_second_);
}

void Profiler::clear() {
  entries();   // what is still pending belongs to the past too
  entries_.clear();
}

const std::map<std::string, ProfileEntry>& Profiler::entries() {
  for (std::size_t i = 0; i < pending_; ++i) {
    Timed& timed = timed_[i];
    timed.end.synchronize();
    record(timed.kernel, timed.end.seconds_since(timed.start), timed.operations, timed.bytes);
  }
  pending_ = 0;
  return entries_;
}

std::size_t Profiler::begin_on_gpu() {
  if (pending_ == timed_.size()) timed_.push_back({gpu::Event(stream_.device, true), gpu::Event(stream_.device, true), nullptr, 0.0, 0.0});
  timed_[pending_].start.record(stream_);
  return pending_++;
}

void Profiler::end_on_gpu(std::size_t begun, const char* kernel, double operations, double bytes) {
  Timed& timed = timed_[begun];
  timed.kernel = kernel;
  timed.operations = operations;
  timed.bytes = bytes;
  timed.end.record(stream_);
}

}  // namespace fulmen
