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

}  // namespace fulmen
