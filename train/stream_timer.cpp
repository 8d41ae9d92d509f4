// How long pieces of work take on the device.
#include "train/stream_timer.h"

namespace fulmen {

void StreamTimer::reset() {
  seconds_ = 0.0;
  pending_ = 0;
}

void StreamTimer::start() {
  if (!on_gpu()) {
    start_ = std::chrono::steady_clock::now();
    return;
  }
  if (pending_ == spans_.size()) spans_.push_back({gpu::Event(stream_.device, true), gpu::Event(stream_.device, true)});
  spans_[pending_].start.record(stream_);
}

void StreamTimer::stop() {
  if (on_gpu())
    spans_[pending_++].end.record(stream_);
  else
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

double StreamTimer::seconds() {
  for (std::size_t i = 0; i < pending_; ++i) {
    spans_[i].end.synchronize();
    seconds_ += spans_[i].end.seconds_since(spans_[i].start);
  }
  pending_ = 0;
  return seconds_;
}

}  // namespace fulmen
