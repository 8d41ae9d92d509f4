// From text to corpus: what went in can be read back, held-out documents, refusals that leave nothing behind, flat
// memory.
#include "data/prepare.h"

#include <gtest/gtest.h>

#include "data/tokenizer.h"
#include "tests/data/corpus_fixture.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using namespace testing_support;
namespace fs = std::filesystem;

std::string random_document() {
  static const std::vector<std::string> words{"stroke", "of",     "lightning", "the",  "a",
                                              "model",  "trains", "over",      "many", "ranks"};
  std::string text;
  for (std::int64_t lines = random_in(1, 6); lines > 0; --lines) {
    if (!text.empty()) text += "\n  ";
    for (std::int64_t count = random_in(1, 9); count > 0; --count) {
      text +=
          words[static_cast<std::size_t>(random_in(0, 9))] + std::to_string(random_in(0, 999)) + (count > 1 ? " " : "");
    }
  }
  return text;
}

std::vector<std::string> random_texts(std::size_t count) {
  std::vector<std::string> texts(count);
  for (std::string& text : texts) text = random_document();
  return texts;
}

void write_texts(const fs::path& path, const std::vector<std::string>& texts) {
  std::string all;
  for (const std::string& text : texts) all += text + "\n\n";
  write_file(path, all);
}

// The documents of a corpus as text.
std::vector<std::string> documents_of(const fs::path& folder) {
  const CorpusReader reader(folder);
  const CorpusManifest& manifest = reader.manifest();
  const auto tokenizer = make_tokenizer(manifest.tokenizer, folder / manifest.tokenizer_file, manifest.vocabulary);
  std::vector<std::int64_t> bounds = reader.document_starts(0, reader.tokens());
  bounds.insert(bounds.begin(), 0);
  bounds.push_back(reader.tokens());
  std::vector<std::string> texts;
  for (std::size_t d = 0; d + 1 < bounds.size(); ++d) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(bounds[d + 1] - bounds[d]));
    reader.read(bounds[d], ids);
    if (manifest.end_of_document) {
      EXPECT_EQ(ids.back(), *manifest.end_of_document);
      ids.pop_back();
    }
    texts.push_back(tokenizer->decode(ids));
  }
  return texts;
}

std::int64_t bytes_of(const std::vector<std::string>& texts) {
  std::int64_t bytes = 0;
  for (const std::string& text : texts) bytes += static_cast<std::int64_t>(text.size());
  return bytes;
}

class Prepare : public ::testing::Test {
 protected:
  PrepareOptions options(TokenizerKind tokenizer) const {
    PrepareOptions made;
    made.inputs = {folder_ / "in.txt"};
    made.output = folder_ / "out";
    made.tokenizer = tokenizer;
    made.vocabulary = 600;
    made.quiet = true;
    return made;
  }

  // Refused with these words, and nothing is left behind.
  void expect_refused(const PrepareOptions& given, const std::vector<std::string>& words) {
    const bool existed = fs::exists(given.output);
    expect_user_error([&] { prepare_corpus(given); }, words);
    EXPECT_EQ(fs::exists(given.output), existed);
  }

  TemporaryFolder folder_;
};

TEST_F(Prepare, TextComesBack) {
  const auto texts = random_texts(3000);
  write_texts(folder_ / "in.txt", texts);
  for (const TokenizerKind kind : {TokenizerKind::bytes, TokenizerKind::sentencepiece}) {
    PrepareOptions given = options(kind);
    given.output = folder_ / std::string(name_of(kind));
    given.shard_tokens = 50'000;
    const PrepareSummary summary = prepare_corpus(given);
    EXPECT_EQ(documents_of(given.output), texts);
    EXPECT_EQ(summary.train.documents(), 3000);
    EXPECT_EQ(summary.train.text_bytes, bytes_of(texts));
    EXPECT_TRUE(summary.holdout.shards.empty());
    EXPECT_GT(summary.train.shards.size(), 1U);
    EXPECT_FALSE(fs::exists(given.output / "holdout"));
    verify_corpus(given.output);
  }
}

TEST_F(Prepare, HeldOutDocuments) {
  const auto texts = random_texts(2000);
  write_texts(folder_ / "in.txt", texts);
  std::vector<std::vector<std::string>> held_out;
  for (const std::uint64_t seed : {1, 1, 2}) {
    PrepareOptions given = options(TokenizerKind::sentencepiece);
    given.output = folder_ / ("out" + std::to_string(held_out.size()));
    given.holdout = 0.1;
    given.seed = seed;
    const PrepareSummary summary = prepare_corpus(given);
    const auto train = documents_of(given.output), holdout = documents_of(given.output / "holdout");
    EXPECT_NEAR(static_cast<double>(holdout.size()), 200.0, 70.0);
    EXPECT_EQ(summary.holdout.documents(), static_cast<std::int64_t>(holdout.size()));
    EXPECT_EQ(*summary.train.text_bytes, bytes_of(train));
    EXPECT_EQ(*summary.holdout.text_bytes, bytes_of(holdout));
    // Together they are the input, each in its order.
    std::vector<std::string> merged;
    auto t = train.begin(), h = holdout.begin();
    for (const std::string& text : texts) {
      if (t != train.end() && *t == text)
        merged.push_back(*t++);
      else if (h != holdout.end() && *h == text)
        merged.push_back(*h++);
    }
    EXPECT_EQ(merged, texts);
    EXPECT_EQ(read_text(given.output / "tokenizer.model"), read_text(given.output / "holdout" / "tokenizer.model"));
    held_out.push_back(holdout);
  }
  EXPECT_EQ(held_out[0], held_out[1]);
  EXPECT_NE(held_out[0], held_out[2]);
}

TEST_F(Prepare, NeitherPartIsEverEmpty) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    write_texts(folder_ / "in.txt", random_texts(2 + seed % 3));
    PrepareOptions given = options(TokenizerKind::bytes);
    given.output = folder_ / ("out" + std::to_string(seed));
    given.holdout = seed % 2 == 0 ? 0.001 : 0.999;
    given.seed = seed;
    const PrepareSummary summary = prepare_corpus(given);
    EXPECT_GE(summary.train.documents(), 1);
    EXPECT_GE(summary.holdout.documents(), 1);
  }
  write_texts(folder_ / "in.txt", random_texts(1));
  PrepareOptions given = options(TokenizerKind::bytes);
  given.holdout = 0.5;
  expect_refused(given, {"single document", "--holdout 0"});
}

TEST_F(Prepare, TakesAModelThatExists) {
  write_texts(folder_ / "in.txt", random_texts(2000));
  prepare_corpus(options(TokenizerKind::sentencepiece));
  const auto texts = random_texts(50);
  write_texts(folder_ / "other.txt", texts);
  PrepareOptions given = options(TokenizerKind::sentencepiece);
  given.inputs = {folder_ / "other.txt"};
  given.output = folder_ / "other";
  given.tokenizer_model = folder_ / "out" / "tokenizer.model";
  const PrepareSummary summary = prepare_corpus(given);
  EXPECT_EQ(summary.train.vocabulary, 600);
  EXPECT_EQ(summary.train.end_of_document, 2);
  EXPECT_EQ(documents_of(given.output), texts);
  given.output = folder_ / "again";
  given.tokenizer_model = folder_ / "other.txt";
  expect_refused(given, {"other.txt", "not a SentencePiece model"});
}

TEST_F(Prepare, TokensWithoutATokenizer) {
  write_file(folder_ / "in.txt", "1 2 3\n599 0\n\n7\n");
  const PrepareSummary summary = prepare_corpus(options(TokenizerKind::none));
  EXPECT_EQ(summary.train.documents(), 2);
  EXPECT_EQ(summary.train.end_of_document, std::nullopt);
  const CorpusReader reader(folder_ / "out");
  std::vector<std::int32_t> tokens(6);
  reader.read(0, tokens);
  EXPECT_EQ(tokens, (std::vector<std::int32_t>{1, 2, 3, 599, 0, 7}));
}

TEST_F(Prepare, RefusesAndLeavesNothing) {
  write_texts(folder_ / "in.txt", random_texts(20));
  PrepareOptions given = options(TokenizerKind::bytes);
  given.inputs = {};
  expect_refused(given, {"--input"});
  given = options(TokenizerKind::bytes);
  given.document_separator = "blankline";
  expect_refused(given, {"blankline", "blank-line"});
  given = options(TokenizerKind::bytes);
  given.holdout = 1.0;
  expect_refused(given, {"--holdout"});
  given = options(TokenizerKind::sentencepiece);
  given.vocabulary = 8000;
  expect_refused(given, {"8000", "too large for this text", "--vocabulary"});
  fs::create_directories(given.output);  // an empty folder that was there stays
  expect_refused(given, {"8000"});
  EXPECT_TRUE(fs::is_empty(given.output));
  write_file(given.output / "precious", "keep me");
  expect_refused(given, {"out", "not empty"});
  EXPECT_EQ(read_text(given.output / "precious"), "keep me");
}

TEST_F(Prepare, RefusesInputWithoutText) {
  write_file(folder_ / "in.txt", "\n  \n\n");
  expect_refused(options(TokenizerKind::bytes), {"no text"});
  expect_refused(options(TokenizerKind::sentencepiece), {"no text"});
  PrepareOptions given = options(TokenizerKind::bytes);
  given.inputs = {folder_ / "missing.txt"};
  expect_refused(given, {"missing.txt", "no such file"});
}

TEST_F(Prepare, AMalformedLineFarInLeavesNothing) {
  std::string lines;
  for (int i = 0; i < 30'000; ++i)
    lines += R"({"text": "some text of no importance"})"
             "\n";
  write_file(folder_ / "in.jsonl", lines + "{\"text\": }\n");
  PrepareOptions given = options(TokenizerKind::bytes);
  given.inputs = {folder_ / "in.jsonl"};
  given.holdout = 0.2;
  expect_refused(given, {"in.jsonl:30001", "malformed JSON"});
}

}  // namespace
}  // namespace fulmen
