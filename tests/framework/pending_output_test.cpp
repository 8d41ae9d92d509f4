// Results are whole or not there, and replace only what they are asked to.
#include "framework/pending_output.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "framework/files.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;
using testing_support::TemporaryFolder;
using Kind = PendingOutput::Kind;
namespace fs = std::filesystem;

class Pending : public ::testing::Test {
 protected:
  std::vector<std::string> entries(const fs::path& folder) const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }
  std::vector<std::string> entries() const { return entries(folder_.path()); }

  void write_file(const fs::path& path, bool overwrite, const std::string& text) {
    PendingOutput output(path, Kind::file, overwrite);
    write_text_atomically(output.place(), text);
    output.complete();
  }
  void write_folder(const fs::path& path, bool overwrite, const std::string& text) {
    PendingOutput output(path, Kind::folder, overwrite, [](const std::string& name) { return name == "part"; });
    fs::create_directory(output.place());
    write_text_atomically(output.place() / "part", text);
    output.complete();
  }
  // A writer that is killed in the middle.
  void leave_a_leftover(const fs::path& path, Kind kind) {
    const pid_t child = fork();
    if (child == 0) {
      const PendingOutput output(path, kind, false);
      kill(getpid(), SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
  }

  TemporaryFolder folder_;
};

TEST_F(Pending, AppearsWhenItIsComplete) {
  for (const Kind kind : {Kind::file, Kind::folder}) {
    const fs::path path = folder_ / "result";
    {
      PendingOutput output(path, kind, false);
      if (kind == Kind::folder) fs::create_directory(output.place());
      if (kind == Kind::file) write_text_atomically(output.place(), "text");
      EXPECT_FALSE(fs::exists(path));
      output.complete();
    }
    EXPECT_EQ(entries(), std::vector<std::string>{"result"});
    fs::remove_all(path);
    {
      const PendingOutput abandoned(path, kind, false);
      write_text_atomically(abandoned.place(), "half");
    }
    EXPECT_TRUE(entries().empty());
  }
  write_file(folder_ / "new/folders/file", false, "text");
  EXPECT_EQ(read_text(folder_ / "new/folders/file"), "text");
  write_folder(folder_ / "with a slash/", false, "text");
  EXPECT_EQ(entries(folder_ / "with a slash"), std::vector<std::string>{"part"});
}

TEST_F(Pending, ReplacesOnlyWhenAskedTo) {
  write_file(folder_ / "file", false, "first");
  expect_user_error([&] { write_file(folder_ / "file", false, "second"); },
                    {"file", "is there already", "--overwrite"});
  EXPECT_EQ(read_text(folder_ / "file"), "first");
  write_file(folder_ / "file", true, "second");
  EXPECT_EQ(read_text(folder_ / "file"), "second");

  write_folder(folder_ / "folder", false, "first");
  expect_user_error([&] { write_folder(folder_ / "folder", false, "second"); }, {"folder", "not empty", "--overwrite"});
  EXPECT_EQ(read_text(folder_ / "folder/part"), "first");
  write_folder(folder_ / "folder", true, "second");
  EXPECT_EQ(read_text(folder_ / "folder/part"), "second");
  EXPECT_EQ(entries(), (std::vector<std::string>{"file", "folder"}));

  // A folder that is no result of the kind stays, whatever is permitted.
  write_text_atomically(folder_ / "folder/thesis.txt", "words");
  for (const bool overwrite : {false, true})
    expect_user_error([&] { write_folder(folder_ / "folder", overwrite, "third"); }, {"folder"});
  expect_user_error([&] { write_folder(folder_ / "folder", true, "third"); }, {"thesis.txt"});
  expect_user_error([&] { write_folder(folder_ / "file", true, "third"); }, {"file", "a file stands"});
  expect_user_error([&] { write_file(folder_ / "folder", true, "third"); }, {"a folder", "not a file"});
  expect_user_error([&] { write_file("/dev/null", true, "third"); }, {"/dev/null", "a device"});
  EXPECT_EQ(read_text(folder_ / "folder/thesis.txt"), "words");
  EXPECT_EQ(read_text(folder_ / "folder/part"), "second");

  fs::create_directory(folder_ / "empty");
  write_folder(folder_ / "empty", false, "text");
  EXPECT_EQ(read_text(folder_ / "empty/part"), "text");
  fs::create_symlink("empty", folder_ / "link");
  expect_user_error([&] { write_folder(folder_ / "link", false, "x"); }, {"empty", "not empty"});
}

TEST_F(Pending, WhatHasComeMeanwhileStays) {
  PendingOutput file(folder_ / "file", Kind::file, false), folder(folder_ / "folder", Kind::folder, false);
  write_text_atomically(file.place(), "late");
  fs::create_directory(folder.place());
  write_text_atomically(folder_ / "file", "early");
  fs::create_directories(folder_ / "folder/early");
  expect_user_error([&] { file.complete(); }, {"file", "meanwhile"});
  expect_user_error([&] { folder.complete(); }, {"folder", "meanwhile"});
  EXPECT_EQ(read_text(folder_ / "file"), "early");
  EXPECT_TRUE(fs::exists(folder_ / "folder/early"));
}

TEST_F(Pending, APartialOfSomebodysOwnStays) {
  for (const bool is_folder : {false, true}) {
    const fs::path own = folder_ / "result.partial";
    if (is_folder) fs::create_directory(own);
    write_text_atomically(is_folder ? own / "notes" : own, "mine");
    for (const Kind kind : {Kind::file, Kind::folder}) {
      expect_user_error([&] { PendingOutput(folder_ / "result", kind, false); },
                        {"result.partial", "in the way", "--overwrite"});
      EXPECT_EQ(read_text(is_folder ? own / "notes" : own), "mine");
    }
    write_file(folder_ / "result", true, "asked for");
    EXPECT_EQ(entries(), std::vector<std::string>{"result"});
    fs::remove(folder_ / "result");
  }
}

TEST_F(Pending, AKilledWriterIsNotInTheWayALivingOneIs) {
  for (const Kind kind : {Kind::file, Kind::folder}) {
    leave_a_leftover(folder_ / "result", kind);
    EXPECT_EQ(entries(), std::vector<std::string>{"result.partial"});
    const PendingOutput output(folder_ / "result", kind, false);
    EXPECT_FALSE(fs::exists(output.place()));
    for (const bool overwrite : {false, true})
      expect_user_error([&] { PendingOutput(folder_ / "result", kind, overwrite); }, {"result", "another program"});
    write_text_atomically(output.place(), "still there");
  }
}

}  // namespace
}  // namespace fulmen
