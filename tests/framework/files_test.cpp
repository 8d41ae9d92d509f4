// Atomic writing, folders, and hashes of files.
#include "framework/files.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "framework/hash.h"
#include "framework/hdf5.h"
#include "framework/outside_files.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;
using testing_support::TemporaryFolder;
namespace fs = std::filesystem;

TEST(Files, RoundTripAndReplacement) {
  const TemporaryFolder folder;
  const fs::path path = folder / "a.yaml";
  write_text_atomically(path, "first");
  EXPECT_EQ(read_text(path), "first");
  const std::string second(300'000, 'x');
  write_text_atomically(path, second);
  EXPECT_EQ(read_text(path), second);
  write_text_atomically(path, "");
  EXPECT_EQ(read_text(path), "");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "a temporary was left";
  flush_to_disk(path);
  flush_to_disk(folder.path());
}

TEST(Files, RefusalsNameThePath) {
  const TemporaryFolder folder;
  expect_user_error([&] { read_text(folder / "none"); }, {"none", "No such file"});
  expect_user_error([&] { read_text(folder.path()); }, {folder.path().string(), "directory"});
  expect_user_error([&] { write_text_atomically(folder / "no-folder/x", "text"); },
                    {"no-folder/x", "cannot be written"});
  fs::create_directory(folder / "taken");
  fs::create_directory(folder / "taken/inside");
  expect_user_error([&] { write_text_atomically(folder / "taken", "text"); }, {"taken", "cannot be written"});
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path()), {}), 1) << "a temporary was left";
  expect_user_error([] { write_text_atomically("/proc/x", "text"); }, {"/proc/x"});
}

TEST(OutsideFiles, NamesThatAFileFromOutsideMayGive) {
  for (const char* name :
       {"shard-00000.h5", "tokenizer.model", "ünïcode [1].h5", "a model: #1.model", "...", "-x", ".h"})
    EXPECT_EQ(file_name_problem(name), "") << name;
  for (const char* name :
       {"", ".", "..", "/etc/passwd", "../evil.sh", "folder/shard.h5", "shard.h5/", "a\nb", "\x1b[2J"})
    EXPECT_NE(file_name_problem(name), "") << name;
  EXPECT_EQ(file_name_problem(std::string(255, 'x')), "");
  EXPECT_NE(file_name_problem(std::string(256, 'x')), "");
  EXPECT_NE(file_name_problem(std::string_view("a\0b", 3)), "");
}

// A FIFO without a writer, a socket and a device are refused at once, by whoever is to read them as a file.
TEST(OutsideFiles, OnlyOrdinaryFilesAreRead) {
  const TemporaryFolder folder;
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  const int socket_descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  ASSERT_LT((folder / "socket").string().size(), sizeof address.sun_path);
  (folder / "socket").string().copy(address.sun_path, sizeof address.sun_path - 1);
  ASSERT_EQ(bind(socket_descriptor, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  close(socket_descriptor);
  fs::create_symlink("fifo", folder / "link");
  const std::vector<std::pair<fs::path, std::string>> places = {{folder / "fifo", "a FIFO"},
                                                                {folder / "link", "a FIFO"},
                                                                {folder / "socket", "a socket"},
                                                                {"/dev/zero", "a device"},
                                                                {folder.path(), "a folder"}};
  for (const auto& [path, kind] : places) {
    const std::vector<std::string> words = {path.string(), kind, "not a file"};
    expect_user_error([&] { read_text(path); }, words);
    expect_user_error([&] { hash_file(path); }, words);
    expect_user_error([&] { open_regular_file(path); }, words);
    expect_user_error([&] { hdf5::File::open(path); }, words);
  }
  write_text_atomically(folder / "file", "text");
  fs::create_symlink("file", folder / "link to a file");
  EXPECT_EQ(read_text(folder / "link to a file"), "text");
}

TEST(Files, WritableFolders) {
  const TemporaryFolder folder;
  ensure_writable_folder(folder / "a/b/c", "the run folder");
  EXPECT_TRUE(fs::is_directory(folder / "a/b/c"));
  EXPECT_TRUE(fs::is_empty(folder / "a/b/c"));
  write_text_atomically(folder / "file", "x");
  expect_user_error([&] { ensure_writable_folder(folder / "file", "the run folder"); }, {"file", "the run folder"});
  expect_user_error([&] { ensure_writable_folder(folder / "file/below", "the run folder"); }, {"file/below"});
  expect_user_error([] { ensure_writable_folder("/proc/fulmen", "the corpus"); }, {"/proc/fulmen", "the corpus"});
}

TEST(Files, TheHomeFolder) {
  const std::string home = std::getenv("HOME") == nullptr ? "" : std::getenv("HOME");
  setenv("HOME", "/home/mara", 1);
  EXPECT_EQ(expand_home("~/runs/a", "--output"), "/home/mara/runs/a");
  EXPECT_EQ(expand_home("~", "--output"), "/home/mara");
  for (const char* path : {"", "/a/~/b", "a~", "./~/x"}) EXPECT_EQ(expand_home(path, "--output"), path);
  expect_user_error([] { expand_home("~noah/runs", "--output"); },
                    {"--output", "~noah/runs", "in full", "./~noah/runs"});
  unsetenv("HOME");
  expect_user_error([] { expand_home("~/runs", "a.yaml:2"); }, {"a.yaml:2", "~/runs", "$HOME is not set"});
  if (!home.empty()) setenv("HOME", home.c_str(), 1);
}

TEST(Files, FreeBytesOfAPlaceThatIsNotThereYet) {
  const TemporaryFolder folder;
  EXPECT_GT(free_bytes(folder.path()), 0u);
  EXPECT_GT(free_bytes(folder / "x/y/z"), 0u);
}

TEST(Hash, KnownAnswersAndPieces) {
  EXPECT_EQ(Hasher().digest(), "2d06800538d394c2");  // XXH3 of nothing, seed 0
  std::string text(3'000'001, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 31 + i / 7);
  Hasher whole, pieces;
  whole.update(text.data(), text.size());
  for (std::size_t i = 0; i < text.size(); i += 77'777) {
    pieces.update(text.data() + i, std::min<std::size_t>(77'777, text.size() - i));
  }
  EXPECT_EQ(whole.digest(), pieces.digest());
  EXPECT_EQ(whole.digest().size(), 16u);

  const TemporaryFolder folder;
  write_text_atomically(folder / "x", text);
  EXPECT_EQ(hash_file(folder / "x"), whole.digest());
  text[1'500'000] ^= 1;
  EXPECT_NE(hash_bytes(text.data(), text.size()), std::stoull(whole.digest(), nullptr, 16));
  expect_user_error([&] { hash_file(folder / "y"); }, {"y", "No such file"});
}

}  // namespace
}  // namespace fulmen
