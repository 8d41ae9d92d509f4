// Which files are read as what: names, folders, links, encodings, and what is said of those that are not read.
#include "data/text_files.h"

#include <sys/stat.h>

#include <algorithm>

#include <gtest/gtest.h>

#include "data/input_stream.h"
#include "data/text_source.h"
#include "tests/data/corpus_fixture.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using namespace testing_support;
namespace fs = std::filesystem;
using Texts = std::vector<std::string>;

class TextFiles : public ::testing::Test {
 protected:
  void write(const std::string& name, const std::string& content = "words\n") {
    fs::create_directories((root_ / name).parent_path());
    write_file(root_ / name, content);
  }

  // The files that are read, relative to the root.
  Texts listed(const TextListing& listing) const {
    Texts names;
    for (const TextFile& file : listing.files) names.push_back(file.path.lexically_relative(root_).string());
    return names;
  }

  // The one warning that holds all of `words`.
  void expect_warning(const TextListing& listing, const Texts& words) const {
    const Texts lines = text_file_warnings(listing);
    const auto holds_all = [&](const std::string& line) {
      return std::ranges::all_of(words, [&](const std::string& word) { return line.find(word) != std::string::npos; });
    };
    EXPECT_EQ(std::ranges::count_if(lines, holds_all), 1)
        << words.front() << " in: " << ::testing::PrintToString(lines);
  }

  void expect_refused(const std::string& name, const std::string& content, Texts words) {
    write(name, content);
    words.push_back(name);
    expect_user_error([&] { list_text_files({root_ / name}); }, words);
    expect_user_error([&] { list_text_files({root_}); }, words);
    // Whoever reads the file without a listing is told, too.
    expect_user_error(
        [&] {
          TextSource source({root_ / name}, {});
          TextPiece piece;
          source.next(piece);
        },
        words);
    fs::remove(root_ / name);
  }

  TemporaryFolder folder_;
  fs::path root_ = folder_ / "texts";
};

TEST_F(TextFiles, KindsByName) {
  for (const char* name :
       {"x.jsonl", "x.JSONL", "x.Json", "x.ndjson", "x.jsonl.gz", "x.jsonl.GZ", "x.JSONL.gz", "x.JSONL.ZST",
        "x.json.zstd", "x.json.gzip", "x.json-00001-of-00010", "X.JSON-00001-OF-00010", "x.json-00001-of-00010.gz",
        "x.json.gz-00001-of-00010", "x.00001-of-00010.json"})
    EXPECT_EQ(text_kind_of_name(name), TextKind::json_lines) << name;
  for (const char* name : {"x.txt", "x.TXT", "x", "x.json.txt", "x.json.md", "json", "x.json-1-of-", "x.json-of-2",
                           "x.json1-of-2", "x.json-1-of-2x", "-1-of-2", "1-of-2"})
    EXPECT_EQ(text_kind_of_name(name), TextKind::plain) << name;
  EXPECT_EQ(stored_name("/a.zst/B.TXT.GZ").content, "b.txt");
  EXPECT_EQ(stored_name("b.txt.GZ").compression, Compression::gzip);
  EXPECT_EQ(stored_name("b.txt.Zst-1-of-2").compression, Compression::zstd);
  EXPECT_EQ(stored_name("gz").compression, Compression::none);
}

TEST_F(TextFiles, JsonLinesWhateverTheCase) {
  for (const char* name : {"x.JSONL", "x.json-00001-of-00010", "x.NDJSON"}) {
    write(name, R"({"text": "abc"})");
    TextSource source({root_ / name}, {});
    TextPiece piece;
    ASSERT_TRUE(source.next(piece));
    EXPECT_EQ(piece.text, "abc") << name;
  }
  expect_user_error([&] { list_text_files({root_ / "x.PARQUET"}); }, {"x.PARQUET", "no such file"});
  write("x.PARQUET");
  expect_user_error([&] { list_text_files({root_ / "x.PARQUET"}); }, {"x.PARQUET", ".parquet"});
  write("y.txt.GZ", "not compressed");
  expect_user_error([&] { list_text_files({root_ / "y.txt.GZ"}); }, {"y.txt.GZ", "gzip", "does not begin as such"});
}

TEST_F(TextFiles, FoldersGiveAllThatIsNamedAsText) {
  for (const char* name : {"a.txt", "b.TXT", "c.jsonl", "d.json", "e.ndjson", "f.json-00000-of-00002", "g/h.txt"})
    write(name);
  const TextListing listing = list_text_files({root_});
  EXPECT_EQ(listed(listing),
            (Texts{"a.txt", "b.TXT", "c.jsonl", "d.json", "e.ndjson", "f.json-00000-of-00002", "g/h.txt"}));
  EXPECT_TRUE(text_file_warnings(listing).empty());
  EXPECT_EQ(describe_files(listing), "input: 3 files of plain text, 4 of JSON lines, 42 B");
}

TEST_F(TextFiles, WhatIsLeftOutIsSaid) {
  for (const char* name : {"a.txt", "README", "b.csv", ".hidden.txt", ".git/description.txt"}) write(name);
  fs::create_symlink("nowhere", root_ / "gone");
  ASSERT_EQ(mkfifo((root_ / "pipe.txt").c_str(), 0600), 0);
  const TextListing listing = list_text_files({root_});
  EXPECT_EQ(listed(listing), Texts{"a.txt"});
  EXPECT_EQ(listing.left_out.size(), 6U);
  expect_warning(listing, {"not named as text", "texts/README", "texts/b.csv", "name the file itself"});
  expect_warning(listing, {"hidden", "texts/.git", "texts/.hidden.txt"});
  expect_warning(listing, {"a link to nothing", "texts/gone"});
  expect_warning(listing, {"neither a file nor a folder", "texts/pipe.txt"});
  // Named itself, a file may have any name.
  EXPECT_EQ(list_text_files({root_ / "README", root_ / ".hidden.txt"}).files.size(), 2U);
  fs::remove(root_ / "a.txt");
  expect_user_error([&] { list_text_files({root_}); }, {"texts", "holds no .txt", "not named as text", "README"});
  for (int i = 0; i < 20; ++i) write("more" + std::to_string(i));
  write("a.txt");
  expect_warning(list_text_files({root_}), {"not named as text", "and 17 more"});
}

TEST_F(TextFiles, ALinkToTextThatIsGone) {
  write("a.txt");
  fs::create_symlink("/nonexistent/b.jsonl", root_ / "b.JSONL.gz");
  expect_user_error([&] { list_text_files({root_}); },
                    {"texts/b.JSONL.gz", "a link to /nonexistent/b.jsonl", "not there"});
  expect_user_error([&] { list_text_files({root_ / "b.JSONL.gz"}); }, {"b.JSONL.gz", "a link to /nonexistent/b.jsonl"});
  fs::remove(root_ / "b.JSONL.gz");
  fs::create_symlink("self.txt", root_ / "self.txt");
  expect_user_error([&] { list_text_files({root_}); }, {"texts/self.txt", "a link to self.txt"});
}

TEST_F(TextFiles, AFileIsReadOnce) {
  write("a.txt");
  write("sub/b.txt");
  fs::create_directory_symlink("..", root_ / "sub" / "loop");
  fs::create_directory_symlink("sub", root_ / "twin");
  fs::create_symlink("a.txt", root_ / "z.txt");
  const TextListing listing = list_text_files({root_});
  EXPECT_EQ(listed(listing), (Texts{"a.txt", "sub/b.txt"}));
  EXPECT_EQ(listing.left_out.size(), 3U);
  expect_warning(listing, {"taken already under another name", "z.txt (as ", "sub/loop (as ", "twin (as "});
  // So with what is named itself, in any order.
  EXPECT_EQ(listed(list_text_files({root_ / "a.txt", root_})), (Texts{"a.txt", "sub/b.txt"}));
  const TextListing twice = list_text_files({root_, root_, root_ / "a.txt"});
  EXPECT_EQ(listed(twice), (Texts{"a.txt", "sub/b.txt"}));
  EXPECT_EQ(twice.left_out.size(), 5U);
  // A folder whose files are all taken already is no mistake.
  fs::create_directories(folder_ / "links");
  fs::create_symlink(root_ / "a.txt", folder_ / "links" / "a.txt");
  EXPECT_EQ(list_text_files({root_, folder_ / "links"}).files.size(), 2U);
}

// `text` in units of `width` bytes.
std::string widened(const std::string& text, std::size_t width, bool big_endian) {
  std::string wide;
  for (const char c : text) {
    std::string unit(width, '\0');
    unit[big_endian ? width - 1 : 0] = c;
    wide += unit;
  }
  return wide;
}

TEST_F(TextFiles, OtherEncodingsAreRefused) {
  using namespace std::string_literals;
  const std::string text = "The number is 5.\n";
  expect_refused("a.txt", "\xff\xfe" + widened(text, 2, false), {"UTF-16", "iconv -f UTF-16 -t UTF-8"});
  expect_refused("a.txt", "\xfe\xff" + widened(text, 2, true), {"UTF-16"});
  expect_refused("a.jsonl", "\xff\xfe" + widened(R"({"text": "x"})", 2, false), {"UTF-16"});
  expect_refused("a.txt", "\xff\xfe\0\0"s + widened(text, 4, false), {"UTF-32"});
  expect_refused("a.txt", "\0\0\xfe\xff"s + widened(text, 4, true), {"UTF-32"});
  // Without a mark: in the Latin alphabet, and in another with spaces.
  expect_refused("a.txt", widened(text, 2, false), {"UTF-16"});
  expect_refused("a.txt", widened(text, 2, true), {"UTF-16"});
  std::string cyrillic;
  for (int i = 0; i < 200; ++i) cyrillic += i % 7 == 6 ? " \0"s : "\x30\x04"s;
  expect_refused("a.txt", cyrillic, {"UTF-16"});
  // Text that holds a few zero bytes is taken as it is.
  write("a.txt", std::string(1000, 'x') + "\0"s + std::string(1000, 'x'));
  EXPECT_EQ(list_text_files({root_}).files.size(), 1U);
}

TEST_F(TextFiles, PointersInPlaceOfText) {
  const std::string lfs =
      "version https://git-lfs.github.com/spec/v1\noid "
      "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
      "size 12345\n";
  expect_refused("a.txt", lfs, {"Git LFS pointer", "git lfs pull"});
  expect_refused("a.jsonl", lfs, {"Git LFS pointer"});
  expect_refused("a.txt", "/annex/objects/SHA256E-s12345--4d7a.txt\n", {"git-annex pointer", "git annex get"});
  write("tokenizer.model", lfs);
  expect_user_error([&] { read_text(root_ / "tokenizer.model"); }, {"tokenizer.model", "Git LFS pointer"});
  write("shard-00000.h5", lfs);
  expect_user_error([&] { hdf5::File::open(root_ / "shard-00000.h5"); }, {"shard-00000.h5", "Git LFS pointer"});
}

TEST_F(TextFiles, PlainTextThatBeginsLikeJson) {
  write("a.txt", "\n{\"text\": \"abc\"}\n");
  write("b.txt", "{this} is no JSON");
  write("c.jsonl", "{\"text\": \"abc\"}\n");
  expect_warning(list_text_files({root_}), {"read as plain text", "JSON lines", "texts/a.txt"});
  EXPECT_EQ(text_file_warnings(list_text_files({root_})).size(), 1U);
  fs::remove(root_ / "a.txt");
  EXPECT_TRUE(text_file_warnings(list_text_files({root_})).empty());
}

}  // namespace
}  // namespace fulmen
