// Reading the limits of a process's memory.
#include "framework/host_memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/hash.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr double unlimited = std::numeric_limits<double>::infinity();

// The number behind a word at the beginning of a line.
std::optional<double> number_behind(const fs::path& path, const std::string& word) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string first;
    double value = 0.0;
    if (words >> first >> value && first == word) return value;
  }
  return {};
}

// The number that a file holds; nothing for "max" and where there is no such file.
std::optional<double> number_in(const fs::path& path) {
  std::ifstream file(path);
  double value = 0.0;
  if (file >> value) return value;
  return {};
}

struct ControlGroupFiles {
  const char *limit, *used, *statistic;
};
constexpr ControlGroupFiles version_1 = {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
constexpr ControlGroupFiles version_2 = {"memory.max", "memory.current", "inactive_file"};

double left_in(const fs::path& group, const ControlGroupFiles& files) {
  const std::optional<double> limit = number_in(group / files.limit), used = number_in(group / files.used);
  if (!limit || !used) return unlimited;
  return std::max(0.0, *limit - *used + number_behind(group / "memory.stat", files.statistic).value_or(0.0));
}

MemoryRoom control_group_room(const fs::path& root) {
  MemoryRoom room{"no control group", 0, unlimited};
  std::ifstream file(root / "proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // hierarchy:controllers:path
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::vector<std::string> controllers = split(line.substr(first + 1, second - first - 1), ',');
    const bool old = std::ranges::count(controllers, "memory") > 0;
    if (!old && line.substr(0, second) != "0:") continue;
    const fs::path mount = root / (old ? "sys/fs/cgroup/memory" : "sys/fs/cgroup");
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    // Inside a container the path may be the host's, and the group's own files lie at the root.
    for (bool last = false; !last; group = group.parent_path()) {
      last = group.empty();
      const double left = left_in(last ? mount : mount / group, old ? version_1 : version_2);
      if (left < room.available)
        room = {"the control group /" + group.string(), hash_bytes(line.data(), line.size()), left};
    }
  }
  return room;
}

std::string host_name() {
  char name[256] = {};
  FULMEN_CHECK(gethostname(name, sizeof name - 1) == 0, "gethostname failed");
  return name;
}

MemoryRoom own_room(const fs::path& root, const std::string& process) {
  MemoryRoom room{"ulimit -v of " + process, hash_bytes(process.data(), process.size()), unlimited};
  rlimit limit{};
  FULMEN_CHECK(getrlimit(RLIMIT_AS, &limit) == 0, "getrlimit failed");
  if (limit.rlim_cur == RLIM_INFINITY) return room;
  const double used = number_in(root / "proc/self/statm").value_or(0.0) * static_cast<double>(sysconf(_SC_PAGESIZE));
  room.available = std::max(0.0, static_cast<double>(limit.rlim_cur) - used);
  return room;
}

}  // namespace

std::vector<MemoryRoom> host_memory_rooms(const fs::path& root) {
  const std::string host = host_name();
  const std::optional<double> kibibytes = number_behind(root / "proc/meminfo", "MemAvailable:");
  MemoryRoom group = control_group_room(root);
  group.name += " on " + host;
  group.identity ^= hash_bytes(host.data(), host.size());
  return {{"the host " + host, hash_bytes(host.data(), host.size()), kibibytes ? *kibibytes * 1024.0 : unlimited},
          std::move(group),
          own_room(root, fmt::format("process {} on {}", getpid(), host))};
}

}  // namespace fulmen
