// Documents out of files: separators, line ends, compression, large documents, and what is malformed.
#include "data/text_source.h"

#include <zlib.h>
#include <zstd.h>

#include <memory>

#include <gtest/gtest.h>

#include "data/input_stream.h"
#include "data/text_files.h"
#include "tests/data/corpus_fixture.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using namespace testing_support;
namespace fs = std::filesystem;

constexpr std::size_t piece_bytes = std::size_t{1} << 20;

// One gzip member. `extra` is put into the header's extra field, as dictzip does.
std::string gzip(const std::string& text, std::string extra = {}) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  gz_header header{};
  header.extra = reinterpret_cast<Bytef*>(extra.data());
  header.extra_len = static_cast<uInt>(extra.size());
  if (!extra.empty()) {
    EXPECT_EQ(deflateSetHeader(&stream, &header), Z_OK);
  }
  std::string out(deflateBound(&stream, text.size()) + extra.size() + 100, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// One frame with a checksum, as the zstd program makes them.
std::string zstd(const std::string& text) {
  const std::unique_ptr<ZSTD_CCtx, std::size_t (*)(ZSTD_CCtx*)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, 1);
  std::string out(ZSTD_compressBound(text.size()), '\0');
  const std::size_t size = ZSTD_compress2(context.get(), out.data(), out.size(), text.data(), text.size());
  EXPECT_FALSE(ZSTD_isError(size));
  out.resize(size);
  return out;
}

// One frame of a stream of unknown length, with a window of 2^log bytes: as `zstd --long=log` makes of a pipe.
std::string zstd_with_window(const std::string& text, int log) {
  // The magic number; a descriptor with neither size nor checksum; the window; one raw block, which is the last.
  std::string frame = "\x28\xb5\x2f\xfd";
  frame += '\0';
  frame += static_cast<char>((log - 10) << 3);
  const std::size_t header = text.size() << 3 | 1;
  for (int byte = 0; byte < 3; ++byte) frame += static_cast<char>(header >> (8 * byte) & 0xff);
  return frame + text;
}

// Bytes that do not compress away, as lines.
std::string random_lines(std::size_t bytes) {
  std::string text;
  while (text.size() < bytes) {
    for (std::int64_t i = random_in(0, 60); i > 0; --i) text += static_cast<char>(random_in('a', 'z'));
    text += '\n';
  }
  return text;
}

class Source : public ::testing::Test {
 protected:
  std::vector<std::string> documents(const std::vector<fs::path>& inputs, const TextSourceOptions& options = {}) {
    std::vector<fs::path> files;
    for (const TextFile& file : list_text_files(inputs).files) files.push_back(file.path);
    TextSource source(std::move(files), options);
    std::vector<std::string> found;
    bool continues = false;
    for (TextPiece piece; source.next(piece);) {
      EXPECT_LE(piece.text.size(), piece_bytes + 1);
      EXPECT_FALSE(piece.text.empty());
      if (!continues) found.emplace_back();
      found.back() += piece.text;
      continues = !piece.ends_document;
    }
    EXPECT_FALSE(continues);
    return found;
  }

  std::vector<std::string> of(const std::string& name, const std::string& content,
                              const TextSourceOptions& options = {}) {
    write_file(folder_ / name, content);
    return documents({folder_ / name}, options);
  }

  void expect_refused(const std::string& name, const std::string& content, std::vector<std::string> words) {
    words.push_back(name);
    expect_user_error([&] { of(name, content); }, words);
  }

  TemporaryFolder folder_;
};

using Texts = std::vector<std::string>;

TEST_F(Source, Separators) {
  const std::string text = "\n\none\n two\n\n  \t\nthree\n\n\n";
  EXPECT_EQ(of("a.txt", text), (Texts{"one\n two", "three"}));
  EXPECT_EQ(of("a.txt", text, {"text", DocumentSeparator::line}), (Texts{"one", " two", "three"}));
  EXPECT_EQ(of("a.txt", text, {"text", DocumentSeparator::file}), (Texts{"one\n two\n\n  \t\nthree\n\n"}));
  EXPECT_EQ(parse_document_separator("blank-line"), DocumentSeparator::blank_line);
  expect_user_error([] { parse_document_separator("lines"); }, {"'lines'", "'line'"});
}

TEST_F(Source, LineEndsAndMarks) {
  EXPECT_EQ(of("a.txt", "one\r\ntwo\r\n\r\nthree\r\n"), (Texts{"one\ntwo", "three"}));
  EXPECT_EQ(of("a.txt", "no end"), (Texts{"no end"}));
  EXPECT_EQ(of("a.txt", "no end\r"), (Texts{"no end"}));
  EXPECT_EQ(of("a.txt", "a\rb\n"), (Texts{"a\rb"}));
  EXPECT_EQ(of("a.txt", "\xef\xbb\xbfmarked\n"), (Texts{"marked"}));
}

TEST_F(Source, NothingInIt) {
  EXPECT_EQ(of("a.txt", ""), Texts{});
  EXPECT_EQ(of("a.txt", "\n \n\t\r\n\n"), Texts{});
  EXPECT_EQ(of("a.jsonl", "\n\n"), Texts{});
  EXPECT_EQ(of("a.jsonl", R"({"text": ""})"
                          "\n"
                          R"({"text": "\n "})"
                          "\n"
                          R"({"text": "x"})"),
            (Texts{"x"}));
}

TEST_F(Source, BytesThatAreNotUtf8) {
  const std::string odd("\xfe\xfe \x80 ok\0nul \xc3", 13);
  EXPECT_EQ(of("a.txt", odd + "\n"), (Texts{odd}));
}

TEST_F(Source, JsonLines) {
  const std::string lines = R"({"id": 1, "text": "one\n\ntwo", "x": null})"
                            "\r\n\n"
                            R"({"text": "h\u00e9llo \ud83d\ude00\t"})";
  EXPECT_EQ(of("a.jsonl", lines), (Texts{"one\n\ntwo", "h\xc3\xa9llo \xf0\x9f\x98\x80\t"}));
  EXPECT_EQ(of("b.ndjson", R"({"body": "x"})", {"body", DocumentSeparator::line}), (Texts{"x"}));
}

TEST_F(Source, MalformedJsonLines) {
  const std::string good = R"({"text": "one"})"
                           "\n";
  expect_refused("a.jsonl",
                 good + "\n" +
                     R"({"text": "two")"
                     "\n" +
                     good,
                 {"a.jsonl:3", "malformed JSON"});
  expect_refused("a.jsonl", good + "{\"text\": \"\xff\"}\n", {"a.jsonl:2", "malformed JSON"});
  expect_refused("a.jsonl", good + R"({"text": "\ud83d"})", {"a.jsonl:2", "malformed JSON"});
  expect_refused("a.jsonl", good + "[1, 2]\n", {"a.jsonl:2", "not a JSON object"});
  expect_refused("a.jsonl", good + R"({"body": "x"})", {"a.jsonl:2", "'text'", "--json-field"});
  expect_refused("a.jsonl", R"({"text": 5})", {"a.jsonl:1", "not text"});
  expect_refused("a.jsonl", std::string(100'000, '[') + "\n", {"a.jsonl:1", "more than 64 deep"});
  std::string many = R"({"text": "x", "ids": [0)";
  for (int i = 0; i < 1'000'000; ++i) many += ",0";
  expect_refused("a.jsonl", many + "]}\n", {"a.jsonl:1", "more than 1000000 values"});
  expect_refused("a.jsonl", R"({"text": "x", "text": "y"})", {"a.jsonl:1", "'text' comes twice"});
  EXPECT_EQ(of("b.jsonl", R"({"a": {"text": "inside"}, "text": "x", "b": ["text", {"text": 5}]})"), (Texts{"x"}));
}

TEST_F(Source, Compressed) {
  const std::string text = random_lines(700'000);
  const TextSourceOptions whole{"text", DocumentSeparator::file};
  const Texts expected = of("a.txt", text, whole);
  EXPECT_EQ(of("a.txt.gz", gzip(text), whole), expected);
  EXPECT_EQ(of("a.dict.dz", gzip(text, std::string("RA\x04\0\x01\0\x05\0", 8)), whole), expected);
  EXPECT_EQ(of("a.txt.zst", zstd(text), whole), expected);
  EXPECT_EQ(of("a.jsonl.gz", gzip(R"({"text": "x"})")), (Texts{"x"}));
  EXPECT_EQ(of("a.jsonl.zst", zstd(R"({"text": "x"})")), (Texts{"x"}));
  // The bytes decide where the name is silent.
  EXPECT_EQ(of("plain-name", gzip(text), whole), expected);
}

TEST_F(Source, SeveralMembersAndFrames) {
  const std::string a = random_lines(300'000), b = random_lines(10), c = random_lines(300'000);
  const TextSourceOptions whole{"text", DocumentSeparator::file};
  const Texts expected = of("a.txt", a + b + c, whole);
  EXPECT_EQ(of("a.txt.gz", gzip(a) + gzip("") + gzip(b) + gzip(c), whole), expected);
  EXPECT_EQ(of("a.txt.gz", gzip(a) + gzip(b) + gzip(c) + std::string(1000, '\0'), whole), expected);
  EXPECT_EQ(of("a.txt.zst", zstd(a) + zstd("") + zstd(b) + zstd(c), whole), expected);
  const std::string skippable("\x50\x2a\x4d\x18\x03\0\0\0abc", 11);
  EXPECT_EQ(of("a.txt.zst", skippable + zstd(a + b) + skippable + zstd(c), whole), expected);
}

TEST_F(Source, LongZstdWindows) {
  for (const int log : {27, 28, 31})
    EXPECT_EQ(of("a.txt.zst", zstd_with_window("words\n", log)), (Texts{"words"})) << log;
  expect_refused("a.txt.zst", zstd_with_window("words\n", 32), {"window of more than 2 GiB", "--long=31"});
}

TEST_F(Source, BlankDocumentsAreCounted) {
  write_file(folder_ / "a.jsonl", R"({"text": ""})"
                                  "\n\n"
                                  R"({"text": " \n"})"
                                  "\n"
                                  R"({"text": "x"})");
  TextSource source({folder_ / "a.jsonl"}, {});
  for (TextPiece piece; source.next(piece);) EXPECT_EQ(piece.text, "x");
  EXPECT_EQ(source.blank_documents(), 2);
}

TEST_F(Source, TruncatedOrDamaged) {
  const std::string text = random_lines(500'000);
  for (const auto& [name, data] :
       {std::pair<std::string, std::string>{"a.txt.gz", gzip(text)}, {"a.txt.zst", zstd(text)}}) {
    for (const std::size_t missing : {std::size_t{1}, std::size_t{7}, data.size() / 2, data.size() - 12}) {
      expect_refused(name, data.substr(0, data.size() - missing), {"truncated"});
    }
    std::string damaged = data;
    for (std::size_t i = 0; i < 64; ++i)
      damaged[data.size() / 2 + i] = static_cast<char>(~damaged[data.size() / 2 + i]);
    expect_refused(name, damaged, {"damaged"});
    expect_refused(name, data + "garbage", {"damaged"});
    expect_refused(name, text, {"does not begin as such"});
    expect_refused(name, "", {"empty"});
  }
}

TEST_F(Source, FilesThatAreNoText) {
  expect_refused("a.tar.gz", gzip("x"), {".tar"});
  expect_refused("corpus.bin", "x", {".bin"});
  expect_user_error([&] { list_text_files({folder_ / "nowhere.txt"}); }, {"nowhere.txt", "no such file"});
  fs::create_directories(folder_ / "empty");
  write_file(folder_ / "empty" / "notes.md", "x");
  expect_user_error([&] { list_text_files({folder_ / "empty"}); }, {"empty", "no .txt, .jsonl"});
  expect_user_error([&] { list_text_files({"/dev/null"}); }, {"/dev/null", "neither a file nor a folder"});
}

TEST_F(Source, FoldersInAlphabeticalOrder) {
  const fs::path root = folder_ / "texts";
  write_file(root / "b.txt", "third");
  write_file(root / "a" / "z.txt.gz", gzip("first\n\nagain"));
  write_file(root / "a.jsonl", R"({"text": "second"})");
  write_file(root / "c" / "c.txt.zst", zstd("fourth"));
  write_file(root / "c" / "ignored.csv", "no");
  write_file(folder_ / "zero.txt", "zero");
  EXPECT_EQ(documents({folder_ / "zero.txt", root}), (Texts{"zero", "first", "again", "second", "third", "fourth"}));
}

// The pieces of one document.
std::vector<TextPiece> pieces_of(const fs::path& path) {
  TextSource source({path}, {"text", DocumentSeparator::file});
  std::vector<TextPiece> pieces;
  for (TextPiece piece; source.next(piece);) pieces.push_back(piece);
  return pieces;
}

TEST_F(Source, LargeDocumentsComeInPieces) {
  const std::string text = random_lines(5 * piece_bytes / 2);
  write_file(folder_ / "a.txt", text);
  write_file(
      folder_ / "a.jsonl", "{\"text\": \"" + [&] {
        std::string escaped;
        for (const char c : text) escaped += c == '\n' ? std::string("\\n") : std::string(1, c);
        return escaped;
      }() + "\"}");
  for (const std::string name : {"a.txt", "a.jsonl"}) {
    const std::vector<TextPiece> pieces = pieces_of(folder_ / name);
    ASSERT_EQ(pieces.size(), 3U) << name;
    std::string whole;
    for (const TextPiece& piece : pieces) {
      const bool last = &piece == &pieces.back();
      EXPECT_EQ(piece.ends_document, last);
      if (!last) {
        EXPECT_EQ(piece.text.back(), '\n');
      }
      whole += piece.text;
    }
    EXPECT_EQ(whole, name == "a.txt" ? text.substr(0, text.size() - 1) : text);
  }
}

TEST_F(Source, LongLinesAreCutBetweenCharacters) {
  std::string text;
  while (text.size() < 3 * piece_bytes)
    text += std::vector<std::string>{"a", "\xc3\xa9", "\xe4\xb8\x96",
                                     "\xf0\x9f\x98\x80"}[static_cast<std::size_t>(random_in(0, 3))];
  write_file(folder_ / "a.txt", text);
  write_file(folder_ / "a.jsonl", "{\"text\": \"" + text + "\"}");
  for (const std::string name : {"a.txt", "a.jsonl"}) {
    const std::vector<TextPiece> pieces = pieces_of(folder_ / name);
    EXPECT_GE(pieces.size(), 3U);
    std::string whole;
    for (const TextPiece& piece : pieces) {
      EXPECT_NE(static_cast<unsigned char>(piece.text.front()) & 0xc0, 0x80) << "begins inside a character";
      EXPECT_LE(piece.text.size(), piece_bytes);
      whole += piece.text;
    }
    EXPECT_EQ(whole, text);
  }
  // Nothing but continuation bytes: cut anywhere, lose nothing.
  const std::string odd(3 * piece_bytes + 5, '\x80');
  EXPECT_EQ(of("odd.txt", odd), (Texts{odd}));
}

TEST_F(Source, CarriageReturnsAtTheCut) {
  // Line ends and blank lines in every position relative to the buffers.
  for (std::size_t shift = 0; shift < 5; ++shift) {
    const std::string line(piece_bytes / 2 - 3 + shift, 'x');
    EXPECT_EQ(of("a.txt", line + "\r\n\r\n" + line + "\r\n" + line), (Texts{line, line + "\n" + line}));
  }
}

TEST_F(Source, BytesReadAreOfTheFiles) {
  const std::string data = gzip(random_lines(400'000));
  write_file(folder_ / "a.txt.gz", data);
  write_file(folder_ / "b.txt", "two\n");
  TextSource source({folder_ / "a.txt.gz", folder_ / "b.txt"}, {});
  for (TextPiece piece; source.next(piece);) {
  }
  EXPECT_EQ(source.file_bytes_read(), static_cast<std::int64_t>(data.size()) + 4);
}

}  // namespace
}  // namespace fulmen
