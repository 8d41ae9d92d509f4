// Where the time of a step goes: each kernel states its work, so that its time can be held against its floor.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>

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
  // Rates of this device as measured: operations and bytes per second.
  Profiler(double operations_per_second, double bytes_per_second)
      : operations_per_second_(operations_per_second), bytes_per_second_(bytes_per_second) {}

  void record(const char* kernel, double seconds, double operations, double bytes);
  void clear() { entries_.clear(); }
  const std::map<std::string, ProfileEntry>& entries() const { return entries_; }

 private:
  double operations_per_second_, bytes_per_second_;
  std::map<std::string, ProfileEntry> entries_;
};

// Times a scope into a profiler; costs a test of a pointer when there is none.
class ProfileScope {
 public:
  ProfileScope(Profiler* profiler, const char* kernel, double operations, double bytes)
      : profiler_(profiler), kernel_(kernel), operations_(operations), bytes_(bytes) {
    if (profiler_) start_ = std::chrono::steady_clock::now();
  }
  ~ProfileScope() {
    if (!profiler_) return;
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
};

}  // namespace fulmen
