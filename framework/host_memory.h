// How much memory this process may still take of its host.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fulmen {

// Memory that some processes share, such as a host's, with what of it can still be had.
struct MemoryRoom {
  std::string name;            // for messages
  std::uint64_t identity = 0;  // equal for the processes that share it
  double available = 0.0;      // bytes; infinity where nothing limits it
};

// Always three, in this order. The host's is MemAvailable of /proc/meminfo. The control group's is the least of it and
// the groups around it (version 1 or 2). Pages of files that can be given back count as free. The process's own is
// ulimit -v. `root` stands in front of /proc and /sys, for tests.
std::vector<MemoryRoom> host_memory_rooms(const std::filesystem::path& root = "/");

}  // namespace fulmen
