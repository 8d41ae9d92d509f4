// Where the time of a step goes.
#include "framework/profiler.h"

#include <algorithm>

namespace fulmen {

Profiler::Profiler(double operations_per_second, double bytes_per_second, Stream stream)
    : operations_per_second_(operations_per_second), bytes_per_second_(bytes_per_second), stream_(stream) {
  if (on_gpu()) origin_event_ = gpu::Event(stream.device, true);
  clear();
}

void Profiler::record(const ProfileInterval& interval, double operations, double bytes) {
  intervals_.push_back(interval);
  ProfileEntry& entry = entries_[interval.name];
  entry.calls += 1;
  entry.seconds += interval.end - interval.begin;
  entry.operations += operations;
  entry.bytes += bytes;
  entry.floor_seconds += std::max(operations / operations_per_second_, bytes / bytes_per_second_);
}

void Profiler::clear() {
  read_pending();  // what is still pending belongs to the past too
  entries_.clear();
  intervals_.clear();
  lanes_.clear();
  lanes_.push_back(stream_.handle);
  origin_ = Clock::now();
  if (on_gpu()) origin_event_.record(stream_);
}

void Profiler::read_pending() {
  for (std::size_t i = 0; i < pending_; ++i) {
    const Timed& timed = timed_[i];
    timed.end.synchronize();
    record({timed.name, timed.lane, timed.communication, timed.start.seconds_since(origin_event_),
            timed.end.seconds_since(origin_event_)},
           timed.operations, timed.bytes);
  }
  pending_ = 0;
}

const std::map<std::string, ProfileEntry>& Profiler::entries() {
  read_pending();
  return entries_;
}

const std::vector<ProfileInterval>& Profiler::intervals() {
  read_pending();
  return intervals_;
}

int Profiler::lane_of(Stream stream) {
  auto lane = std::ranges::find(lanes_, stream.handle);
  if (lane == lanes_.end()) lane = lanes_.insert(lanes_.end(), stream.handle);
  return static_cast<int>(lane - lanes_.begin());
}

std::size_t Profiler::begin_on_gpu(Stream stream) {
  if (pending_ == timed_.size()) {
    timed_.emplace_back();
    timed_.back().start = gpu::Event(stream_.device, true);
    timed_.back().end = gpu::Event(stream_.device, true);
  }
  timed_[pending_].start.record(stream);
  return pending_++;
}

void Profiler::end_on_gpu(std::size_t begun, Stream stream, const char* name, bool communication, double operations,
                          double bytes) {
  Timed& timed = timed_[begun];
  timed.name = name;
  timed.lane = lane_of(stream);
  timed.communication = communication;
  timed.operations = operations;
  timed.bytes = bytes;
  timed.end.record(stream);
}

}  // namespace fulmen
