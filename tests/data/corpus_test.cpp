// The manifest: both ways, and everything that can be wrong with it.
#include "data/corpus.h"

#include <gtest/gtest.h>

#include "tests/data/corpus_fixture.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using testing_support::expect_user_error;
using testing_support::TemporaryFolder;
using testing_support::write_file;

// The example of the format's description.
const char* const example = R"(format: fulmen-corpus
version: 1
vocabulary: 8000
dtype: uint16
end_of_document: 2                                         # a token id, or null
tokenizer: {kind: sentencepiece, file: tokenizer.model}    # sentencepiece, bytes, none
shards:
  - {file: shard-00000.h5, tokens: 1234567, documents: 789, xxh3: 8f4e1c02a7b93d56}
  - {file: shard-00001.h5, tokens: 10, documents: 1, xxh3: null}
)";

class Manifest : public ::testing::Test {
 protected:
  CorpusManifest read(const std::string& text) {
    write_file(folder_ / "manifest.yaml", text);
    return read_corpus_manifest(folder_.path());
  }

  // The example with one part replaced must be refused with these words, and say where.
  void expect_refused(const std::string& from, const std::string& to, std::vector<std::string> words) {
    std::string text = example;
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    words.push_back("manifest.yaml");
    expect_user_error([&] { read(text.replace(at, from.size(), to)); }, words);
  }

  TemporaryFolder folder_;
};

TEST_F(Manifest, ReadsTheExample) {
  const CorpusManifest manifest = read(example);
  EXPECT_EQ(manifest.vocabulary, 8000);
  EXPECT_EQ(manifest.dtype, DType::uint16);
  EXPECT_EQ(manifest.end_of_document, 2);
  EXPECT_EQ(manifest.tokenizer, TokenizerKind::sentencepiece);
  EXPECT_EQ(manifest.tokenizer_file, "tokenizer.model");
  ASSERT_EQ(manifest.shards.size(), 2U);
  EXPECT_EQ(manifest.shards[0].xxh3, "8f4e1c02a7b93d56");
  EXPECT_EQ(manifest.shards[1].xxh3, std::nullopt);
  EXPECT_EQ(manifest.tokens(), 1234577);
  EXPECT_EQ(manifest.documents(), 790);
  EXPECT_EQ(manifest.text_bytes, std::nullopt);
}

void expect_equal(const CorpusManifest& a, const CorpusManifest& b) {
  EXPECT_EQ(a.vocabulary, b.vocabulary);
  EXPECT_EQ(a.dtype, b.dtype);
  EXPECT_EQ(a.end_of_document, b.end_of_document);
  EXPECT_EQ(a.tokenizer, b.tokenizer);
  EXPECT_EQ(a.tokenizer_file, b.tokenizer_file);
  EXPECT_EQ(a.tokenizer_xxh3, b.tokenizer_xxh3);
  EXPECT_EQ(a.text_bytes, b.text_bytes);
  ASSERT_EQ(a.shards.size(), b.shards.size());
  for (std::size_t i = 0; i < a.shards.size(); ++i) {
    EXPECT_EQ(a.shards[i].file, b.shards[i].file);
    EXPECT_EQ(a.shards[i].tokens, b.shards[i].tokens);
    EXPECT_EQ(a.shards[i].documents, b.shards[i].documents);
    EXPECT_EQ(a.shards[i].xxh3, b.shards[i].xxh3);
    EXPECT_EQ(a.shards[i].document_ends_xxh3, b.shards[i].document_ends_xxh3);
  }
}

TEST_F(Manifest, RoundTrip) {
  for (const TokenizerKind kind : {TokenizerKind::sentencepiece, TokenizerKind::bytes, TokenizerKind::none}) {
    CorpusManifest manifest;
    manifest.vocabulary = 70'000;
    manifest.dtype = DType::uint32;
    manifest.tokenizer = kind;
    if (kind == TokenizerKind::sentencepiece)
      manifest.tokenizer_file = "a model: #1.model", manifest.tokenizer_xxh3 = "00000000000000e1";
    if (kind == TokenizerKind::bytes) manifest.end_of_document = 256;
    if (kind == TokenizerKind::none) manifest.text_bytes = 5'000'000'000'000;
    manifest.shards = {{"shard-00000.h5", 50'000'000'000, 12, "1234567890123e45", "0000000000000001"},
                       {"ünïcode [1].h5", 7, 7, std::nullopt}};
    write_corpus_manifest(folder_.path(), manifest);
    expect_equal(read_corpus_manifest(folder_.path()), manifest);
  }
}

TEST_F(Manifest, NoDigitChangesUnnoticed) {
  CorpusManifest manifest;
  manifest.vocabulary = 300;
  manifest.end_of_document = 2;
  manifest.tokenizer = TokenizerKind::sentencepiece;
  manifest.tokenizer_file = "tokenizer.model";
  manifest.tokenizer_xxh3 = "0000000000000001";
  manifest.shards = {{"shard-00000.h5", 100, 10, "0000000000000002", "0000000000000003"}};
  write_corpus_manifest(folder_.path(), manifest);
  const std::string whole = read_text(folder_ / "manifest.yaml");
  EXPECT_TRUE(read(whole).sealed);
  EXPECT_TRUE(unprotected(read(whole)).empty());
  for (const auto& [from, to] :
       std::vector<std::pair<std::string, std::string>>{{"vocabulary: 300", "vocabulary: 301"},
                                                        {"end_of_document: 2", "end_of_document: 3"},
                                                        {"version: 2", "version: 1"},
                                                        {"tokens: 100", "tokens: 101"},
                                                        {"0000000000000003", "0000000000000004"}}) {
    std::string text = whole;
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from << " in " << text;
    expect_user_error([&] { read(text.replace(at, from.size(), to)); }, {"manifest.yaml", "checksum", "version 1"});
  }
  const std::size_t last = whole.rfind('\n', whole.size() - 2) + 1;
  expect_user_error([&] { read(whole.substr(0, last)); }, {"manifest.yaml", "does not end with its checksum"});
  expect_user_error([&] { read(whole + "text_bytes: 5\n"); }, {"does not end with its checksum"});
}

TEST_F(Manifest, SaysWhatNoChecksumCovers) {
  EXPECT_EQ(unprotected(read(example)),
            (std::vector<std::string>{"the manifest itself", "the tokeniser's file", "the tokens of 1 of 2 shards",
                                      "the document ends of 2 of 2 shards"}));
}

TEST_F(Manifest, RefusesWhatIsMissing) {
  expect_user_error([&] { read_corpus_manifest(folder_ / "nowhere"); }, {"nowhere", "no such corpus folder"});
  expect_user_error([&] { read_corpus_manifest(folder_.path()); }, {"is not a corpus", "manifest.yaml"});
  expect_refused("format: fulmen-corpus\n", "", {"'format' is missing"});
  expect_refused("version: 1\n", "", {"'version' is missing"});
  expect_refused("vocabulary: 8000\n", "", {"'vocabulary' is missing"});
  expect_refused("dtype: uint16\n", "", {"'dtype' is missing"});
  expect_refused("end_of_document: 2", "", {"'end_of_document' is missing"});
  expect_refused("kind: sentencepiece, ", "", {"tokenizer: ", "'kind' is missing"});
  expect_refused("{kind: sentencepiece, file: tokenizer.model}", "{kind: sentencepiece}", {"tokenizer: ", "'file'"});
  expect_refused("documents: 789, ", "", {"shards[0]: ", "'documents' is missing"});
  expect_refused("tokens: 10, ", "", {"shards[1]: ", "'tokens' is missing", ":9"});
}

TEST_F(Manifest, RefusesWrongValues) {
  expect_refused("fulmen-corpus", "parquet", {"'parquet'", "fulmen-corpus"});
  expect_refused("version: 1", "version: 3", {"versions 1 to 2", ":2"});
  expect_refused("vocabulary: 8000", "vocabulary: 0", {"'vocabulary' is 0", "from 1 to 65536"});
  expect_refused("vocabulary: 8000", "vocabulary: 65537", {"65537"});
  expect_refused("vocabulary: 8000", "vocabulary: many", {"must be an integer", "'many'"});
  expect_refused("vocabulary: 8000", "vocabulary: [1]", {"must be an integer", "a list"});
  expect_refused("uint16", "int64", {"'int64'", "uint16 or uint32"});
  expect_refused("end_of_document: 2", "end_of_document: 8000", {"8000", "from 0 to 7999"});
  expect_refused("kind: sentencepiece", "kind: wordpiece", {"'wordpiece'", "sentencepiece, bytes or none"});
  expect_refused("tokens: 1234567", "tokens: -1", {"shards[0]: ", "-1"});
  expect_refused("documents: 789", "documents: 0", {"shards[0]: ", "has tokens"});
  expect_refused("tokens: 10, documents: 1", "tokens: 10, documents: 11", {"shards[1]: ", "11"});
  expect_refused("8f4e1c02a7b93d56", "8f4e", {"hexadecimal"});
  expect_refused("tokens: 10", "tokens: 10, tokens: 11", {"given twice"});
}

TEST_F(Manifest, NumbersThatCannotBeAddedUp) {
  expect_refused("tokens: 1234567", "tokens: 9223372036854775807", {"shards[0]: ", "9223372036854775807"});
  expect_refused("tokens: 1234567", "tokens: 99999999999999999999", {"shards[0]: ", "'tokens'"});
  std::string many;
  for (int i = 0; i < 20; ++i)
    many += fmt::format("  - {{file: s{}.h5, tokens: {}, documents: 1, xxh3: null}}\n", i, std::int64_t{1} << 60);
  expect_refused("shards:\n", "shards:\n" + many, {"'shards'", "tokens"});
  expect_refused("version: 1", "version: 1\ntext_bytes: 9223372036854775807", {"'text_bytes'"});
  expect_refused("vocabulary: 8000", "vocabulary: " + std::string(300'000, '[') + std::string(300'000, ']'),
                 {"64 deep"});
}

TEST_F(Manifest, NamesOnlyFilesBesideIt) {
  for (const char* name : {"../evil.sh", "/etc/passwd", "..", "deep/tokenizer.model"}) {
    expect_refused("file: tokenizer.model", fmt::format("file: {}", name), {"tokenizer: ", name, ":6"});
    expect_refused("file: shard-00001.h5", fmt::format("file: {}", name), {"shards[1]: ", name, ":9"});
  }
  expect_refused("file: shard-00001.h5", R"(file: "a\nb")", {"shards[1]: ", "control character"});
}

TEST_F(Manifest, RefusesWhatIsNoYaml) {
  expect_user_error([&] { read("shards: [1, 2\nformat: {"); }, {"manifest.yaml:", "malformed YAML"});
  expect_user_error([&] { read(""); }, {"manifest.yaml", "expects keys"});
  expect_user_error([&] { read("- a\n- b\n"); }, {"manifest.yaml", "a list"});
  expect_refused("tokenizer: {kind: sentencepiece, file: tokenizer.model}", "tokenizer: bytes",
                 {"tokenizer: ", "'bytes'"});
}

TEST_F(Manifest, ReadsPastKeysOfOthers) {
  std::string text = example;
  text += "licence: CC0\n";
  const CorpusManifest manifest = read(text);
  EXPECT_EQ(manifest.shards.size(), 2U);
}

}  // namespace
}  // namespace fulmen
