// The limits of a process's memory, read from files as systems have them.
#include "framework/host_memory.h"

#include <sys/resource.h>

#include <cmath>

#include <gtest/gtest.h>

#include "framework/files.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

class HostMemory : public ::testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories((folder_.path() / path).parent_path());
    write_text_atomically(folder_.path() / path, text);
  }
  double host() const { return host_memory_rooms(folder_.path())[0].available; }
  MemoryRoom group() const { return host_memory_rooms(folder_.path())[1]; }

  testing_support::TemporaryFolder folder_;
};

TEST_F(HostMemory, TheHostsIsWhatIsAvailable) {
  write("proc/meminfo", "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   5000 kB\n");
  EXPECT_EQ(host(), 5000.0 * 1024.0);
}

TEST_F(HostMemory, NothingLimitsWhereNothingIsSaid) {
  EXPECT_TRUE(std::isinf(host()));
  EXPECT_TRUE(std::isinf(group().available));
  write("proc/self/cgroup", "0::/slurm/job\n");
  write("sys/fs/cgroup/slurm/job/memory.max", "max\n");
  write("sys/fs/cgroup/slurm/job/memory.current", "1000\n");
  EXPECT_TRUE(std::isinf(group().available));
}

TEST_F(HostMemory, TheTightestOfTheGroupsAroundCounts) {
  write("proc/self/cgroup", "0::/slurm/job_1/step_0\n");
  write("sys/fs/cgroup/slurm/job_1/step_0/memory.max", "9000\n");
  write("sys/fs/cgroup/slurm/job_1/step_0/memory.current", "1000\n");
  EXPECT_EQ(group().available, 8000.0);
  write("sys/fs/cgroup/slurm/job_1/memory.max", "6000\n");
  write("sys/fs/cgroup/slurm/job_1/memory.current", "2500\n");
  write("sys/fs/cgroup/slurm/job_1/memory.stat", "anon 1000\ninactive_file 500\nactive_file 70\n");
  EXPECT_EQ(group().available, 4000.0);
  EXPECT_NE(group().name.find("/slurm/job_1 on "), std::string::npos) << group().name;
}

TEST_F(HostMemory, VersionOneAndAContainersRoot) {
  write("proc/self/cgroup", "9:name=systemd:/\n4:cpuset,memory:/docker/0123\n0::/\n");
  write("sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n");
  write("sys/fs/cgroup/memory/memory.usage_in_bytes", "2000\n");
  write("sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n");
  EXPECT_EQ(group().available, 5300.0);
  write("sys/fs/cgroup/memory/docker/0123/memory.limit_in_bytes", "3000\n");
  write("sys/fs/cgroup/memory/docker/0123/memory.usage_in_bytes", "3500\n");
  EXPECT_EQ(group().available, 0.0);
}

TEST_F(HostMemory, TheProcessesOwnLimit) {
  EXPECT_EQ(host_memory_rooms()[2].identity, host_memory_rooms()[2].identity);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  rlimit limit = before;
  constexpr double limit_bytes = 1e14;  // the address sanitizer alone takes 2e13
  limit.rlim_cur = static_cast<rlim_t>(limit_bytes);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
  const double available = host_memory_rooms()[2].available;
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_LT(available, limit_bytes);
  EXPECT_GT(available, 0.5 * limit_bytes);
}

}  // namespace
}  // namespace fulmen
