// Standard streams that are closed or full. Each case runs in a process of its own.
#include "framework/standard_streams.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <gtest/gtest.h>

#include "framework/error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

class StandardStreams : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

// The deaths of these leave with 0 where all is as it should be.
[[noreturn]] void close_all_and_use_them() {
  for (const int descriptor : {0, 1, 2}) close(descriptor);
  settle_standard_streams();
  char byte = 'x';
  const bool useless = read(0, &byte, 1) == -1 && errno == EBADF && write(1, &byte, 1) == -1 && errno == EBADF;
  std::_Exit(useless && open("/dev/null", O_RDONLY) > 2 ? 0 : 3);
}

[[noreturn]] void speak() {
  settle_standard_streams();
  std::fprintf(stderr, "still here");
  std::_Exit(0);
}

[[noreturn]] void write_without_reader() {
  settle_standard_streams();
  int ends[2];
  if (pipe(ends) != 0) std::_Exit(4);
  close(ends[0]);
  std::_Exit(write(ends[1], "x", 1) == -1 && errno == EPIPE ? 0 : 3);
}

[[noreturn]] void write_beyond_the_limit(const std::filesystem::path& path) {
  settle_standard_streams();
  const rlimit limit{4, 4};
  if (setrlimit(RLIMIT_FSIZE, &limit) != 0) std::_Exit(4);
  const int file = open(path.c_str(), O_WRONLY | O_CREAT, 0666);
  std::_Exit(write(file, "1234", 4) == 4 && write(file, "5", 1) == -1 && errno == EFBIG ? 0 : 3);
}

TEST_F(StandardStreams, ClosedOnesAreTakenAndStayUseless) {
  EXPECT_EXIT(close_all_and_use_them(), ::testing::ExitedWithCode(0), "");
}

TEST_F(StandardStreams, OpenOnesStayAsTheyAre) { EXPECT_EXIT(speak(), ::testing::ExitedWithCode(0), "still here"); }

TEST_F(StandardStreams, APipeWithoutReaderIsAnErrorOfItsWrite) {
  EXPECT_EXIT(write_without_reader(), ::testing::ExitedWithCode(0), "");
}

TEST_F(StandardStreams, TheLimitOfAFileIsAnErrorOfItsWrite) {
  const testing_support::TemporaryFolder folder;
  EXPECT_EXIT(write_beyond_the_limit(folder / "f"), ::testing::ExitedWithCode(0), "");
}

// The verdict of finish_standard_output on `printed` with a full disk: at its end, or at a flush before.
[[noreturn]] void finish_on_full_disk(bool flushed_before) {
  if (std::freopen("/dev/full", "w", stdout) == nullptr) std::exit(4);
  std::printf("a result");
  if (flushed_before) std::fflush(stdout);
  try {
    finish_standard_output();
  } catch (const UserError& error) {
    std::fprintf(stderr, "%s", error.what());
    std::_Exit(2);
  }
  std::_Exit(0);
}

TEST_F(StandardStreams, AResultThatCannotBeWrittenIsAnError) {
  EXPECT_EXIT(finish_on_full_disk(false), ::testing::ExitedWithCode(2), "standard output.*No space left");
  EXPECT_EXIT(finish_on_full_disk(true), ::testing::ExitedWithCode(2), "standard output.*could not be written");
}

}  // namespace
}  // namespace fulmen
