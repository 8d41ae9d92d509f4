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

// Always three, in this order: the host's (MemAvailable of /proc/meminfo), that of the control group that leaves least
// (version 1 or 2, with those around it; pages of files that can be given back count as free), and the process's own
// (ulimit -v). `root` stands in front of /proc and /sys, for tests.
std::vector<MemoryRoom> host_memory_rooms(const std::filesystem::path& root = "/");

}  // namespace fulmen
