// The record of a run stays one object a line through full disks, removed files and crashes.
#include "train/metrics.h"

#include <sys/resource.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "framework/files.h"
#include "framework/text.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

namespace fs = std::filesystem;
using testing_support::TemporaryFolder;

StepMetrics at_step(std::int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.loss_nats = 0.25;
  return metrics;
}

// The steps of a file; -1 for a line that is no object.
std::vector<std::int64_t> steps_in(const fs::path& path) {
  std::vector<std::int64_t> steps;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto object = nlohmann::json::parse(line, nullptr, false);
    steps.push_back(object.is_object() ? object.value("step", std::int64_t{-1}) : -1);
  }
  return steps;
}

// While it lives, files of this process cannot grow beyond `bytes`: a disk that is full in the middle of a write.
class FullDisk {
 public:
  explicit FullDisk(std::uint64_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now = {bytes, before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &now), 0);
  }
  ~FullDisk() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_ = {};
  void (*handler_)(int);
};

TEST(Metrics, AFullDiskLeavesNoHalfLineAndLosesNone) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "metrics.jsonl";
  MetricsWriter writer(path, 0);
  writer.write(at_step(1));
  const std::uintmax_t line = fs::file_size(path);
  {
    const FullDisk full(line + line / 2);
    writer.write(at_step(2));
    EXPECT_EQ(fs::file_size(path), line);
    writer.write(at_step(3));
  }
  EXPECT_EQ(steps_in(path), std::vector<std::int64_t>{1});
  {
    const FullDisk full(3 * line + line / 2);  // room for two of the three that wait
    writer.write(at_step(4));
  }
  EXPECT_EQ(steps_in(path), (std::vector<std::int64_t>{1, 2, 3}));
  writer.write(at_step(5));
  EXPECT_EQ(steps_in(path), (std::vector<std::int64_t>{1, 2, 3, 4, 5}));
}

TEST(Metrics, WhatWaitsIsWrittenAtTheEnd) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "run", path = folder / "metrics.jsonl";
  fs::create_directory(folder);
  {
    MetricsWriter writer(path, 0);
    {
      const FullDisk full(10);
      writer.write(at_step(1));
    }
    EXPECT_TRUE(steps_in(path).empty());
  }
  EXPECT_EQ(steps_in(path), std::vector<std::int64_t>{1});

  testing::internal::CaptureStderr();
  {
    MetricsWriter writer(path, 1);
    fs::remove_all(folder);
    writer.write(at_step(2));
  }
  EXPECT_NE(testing::internal::GetCapturedStderr().find("1 lines are lost"), std::string::npos);
}

TEST(Metrics, AFileThatIsRemovedOrMovedIsBegunAgain) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "metrics.jsonl", moved = folder.path() / "moved.jsonl";
  MetricsWriter writer(path, 0);
  writer.write(at_step(1));
  fs::remove(path);
  testing::internal::CaptureStderr();
  writer.write(at_step(2));
  EXPECT_NE(testing::internal::GetCapturedStderr().find("was removed or replaced: it is begun again at step 2"),
            std::string::npos);
  EXPECT_EQ(steps_in(path), std::vector<std::int64_t>{2});
  fs::rename(path, moved);
  writer.write(at_step(3));
  EXPECT_EQ(steps_in(moved), std::vector<std::int64_t>{2});
  EXPECT_EQ(steps_in(path), std::vector<std::int64_t>{3});
}

TEST(Metrics, LinesWaitWhileTheFolderIsAway) {
  const TemporaryFolder root;
  const fs::path folder = root.path() / "run", away = root.path() / "away", path = folder / "metrics.jsonl";
  fs::create_directory(folder);
  MetricsWriter writer(path, 0);
  writer.write(at_step(1));
  fs::rename(folder, away);
  writer.write(at_step(2));
  fs::create_directory(folder);
  writer.write(at_step(3));
  EXPECT_EQ(steps_in(path), (std::vector<std::int64_t>{2, 3}));
  EXPECT_EQ(steps_in(away / "metrics.jsonl"), std::vector<std::int64_t>{1});
}

TEST(Metrics, EachLineHasTheTime) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "metrics.jsonl";
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  };
  const double before = now();
  MetricsWriter(path, 0).write(at_step(1));
  const double time = nlohmann::json::parse(read_text(path)).at("time").get<double>();
  EXPECT_GE(time, before - 0.001);
  EXPECT_LE(time, now());
}

TEST(Metrics, OnResumeLaterAndDamagedLinesAreDropped) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "metrics.jsonl";
  write_text_atomically(path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st");
  MetricsWriter writer(path, 2);
  writer.write(at_step(3));
  EXPECT_EQ(steps_in(path), (std::vector<std::int64_t>{1, 2, 3}));
}

// Other things than a metrics file are refused as such, rather than read into memory or waited for.
TEST(Metrics, LinesHaveALengthThatIsRead) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "metrics.jsonl";
  std::ofstream(path) << "{\"step\": 1}\n[]\n{\"step\": \"x\"}\n{\"step\": 2}\n{\"note\": 1}\n{\"step\": 3}\n{\"st";
  MetricsWriter(path, 2);
  EXPECT_EQ(read_text(path), "{\"step\": 1}\n{\"step\": 2}\n{\"note\": 1}\n");
  std::ofstream(path) << "{\"step\": 1}\n" << std::string(std::size_t{2} << 20, 'x') << "\n";
  testing_support::expect_user_error([&] { MetricsWriter(path, 2); }, {"metrics.jsonl", "line of more than 1.0 MiB"});
  std::ofstream(path) << std::string(300'000, '[') << "\n{\"step\": 1}\n";
  MetricsWriter(path, 2);
  EXPECT_EQ(read_text(path), "{\"step\": 1}\n");
}

}  // namespace
}  // namespace fulmen
