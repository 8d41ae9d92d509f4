// The form of log lines and progress, with a terminal and without.
#include "framework/log.h"

#include <pty.h>
#include <unistd.h>

#include <cstdio>
#include <regex>
#include <string>

#include <gtest/gtest.h>

#include "framework/progress.h"

namespace fulmen {
namespace {

// The text that `action` writes to standard error.
template <class F>
std::string standard_error_of(F&& action) {
  ::testing::internal::CaptureStderr();
  action();
  return ::testing::internal::GetCapturedStderr();
}

TEST(Log, LinesCarryTimeLevelAndText) {
  configure_logging(0, 4);
  const std::string text = standard_error_of([] {
    log_debug("hidden");
    log_info("loss {:.2f}", 5.123);
    log_warning("{{braces}} kept: {}", "{x}");
  });
  const std::regex expected(R"(\d\d:\d\d:\d\d info +loss 5\.12\n\d\d:\d\d:\d\d warning +\{braces\} kept: \{x\}\n)");
  EXPECT_TRUE(std::regex_match(text, expected)) << text;
}

TEST(Log, OtherRanksSpeakFromWarningOnAndSayWhoTheyAre) {
  configure_logging(3, 4);
  const std::string text = standard_error_of([] {
    log_info("hidden");
    log_warning("shown");
    log_line(LogLevel::error, "worse");
  });
  configure_logging(0, 1);
  EXPECT_EQ(text.find("hidden"), std::string::npos);
  EXPECT_NE(text.find("[rank 3] shown\n"), std::string::npos) << text;
  EXPECT_NE(text.find("[rank 3] worse\n"), std::string::npos) << text;
}

TEST(Progress, OffATerminalTheEndIsALine) {
  const std::string text = standard_error_of([] {
    Progress progress("training", 2000);
    for (int i = 0; i <= 2000; ++i) progress.update(i, "loss 5.12");
    progress.finish();
    progress.finish();
  });
  EXPECT_EQ(text, "training 2,000/2,000 (100%)  loss 5.12\n");
}

TEST(Progress, UnknownTotalAndSilence) {
  EXPECT_EQ(standard_error_of([] { Progress("reading", 0).update(1234); }), "reading 1,234\n");
  EXPECT_EQ(standard_error_of([] { Progress("reading", 10, true).update(10); }), "");
  EXPECT_EQ(standard_error_of([] { Progress("reading", 10); }), "");
}

TEST(Progress, OnATerminalABarIsRedrawn) {
  int master = -1, slave = -1;
  ASSERT_EQ(openpty(&master, &slave, nullptr, nullptr, nullptr), 0);
  std::fflush(stderr);
  const int before = dup(STDERR_FILENO);
  dup2(slave, STDERR_FILENO);
  {
    Progress progress("training", 4);
    progress.update(1);
    for (int i = 0; i < 1000; ++i) progress.update(2, "loss " + std::string(200, '5'));
  }
  std::fflush(stderr);
  dup2(before, STDERR_FILENO);
  for (const int fd : {before, slave}) close(fd);
  // With the other end closed, reading ends in an error when all has been read.
  std::string text(8192, '\0');
  std::size_t length = 0;
  for (ssize_t got = 0; (got = read(master, text.data() + length, text.size() - length)) > 0;) length += got;
  close(master);
  text.resize(length);
  ASSERT_FALSE(text.empty());
  EXPECT_NE(text.find("\r\033[Ktraining [######..................] 1/4 (25%)"), std::string::npos) << text;
  EXPECT_NE(text.find("\r\033[Ktraining [############............] 2/4 (50%"), std::string::npos) << text;
  EXPECT_LE(text.size(), 1000u) << "redrawn too often, or wider than the terminal";
  EXPECT_EQ(text.back(), '\n');
}

}  // namespace
}  // namespace fulmen
