// The reader against plain arrays, across shards and kinds of files; every damage that a corpus can come with.
#include <algorithm>
#include <cstdio>

#include <gtest/gtest.h>

#include "data/baseline.h"
#include "data/corpus.h"
#include "data/reader_throughput.h"
#include "framework/hash.h"
#include "tests/data/corpus_fixture.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using namespace testing_support;
namespace fs = std::filesystem;

class Reader : public ::testing::Test {
 protected:
  // A corpus of one foreign shard.
  template <class Stored>
  void write_foreign(const std::vector<Stored>& tokens, const std::vector<std::uint64_t>& ends, std::int64_t vocabulary,
                     std::int64_t manifest_tokens, std::int64_t manifest_documents) {
    CorpusManifest manifest = plain_manifest(vocabulary);
    manifest.dtype = dtype_of<Stored>;
    manifest.shards = {{"part.h5", manifest_tokens, manifest_documents, std::nullopt}};
    write_foreign_shard(folder_ / "part.h5", tokens, ends);
    write_corpus_manifest(folder_.path(), manifest);
  }

  void expect_refused(const std::vector<std::string>& words) {
    expect_user_error([&] { CorpusReader reader(folder_.path()); }, words);
  }

  TemporaryFolder folder_;
};

void expect_same(const CorpusReader& reader, const PlainCorpus& plain, int questions) {
  const auto total = static_cast<std::int64_t>(plain.tokens.size());
  ASSERT_EQ(reader.tokens(), total);
  for (int i = 0; i < questions; ++i) {
    const std::int64_t begin = i == 0 ? 0 : random_in(0, total - 1);
    const std::int64_t end = i == 0 ? total : random_in(begin, total);
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(end - begin), -7);
    reader.read(begin, tokens);
    ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), plain.tokens.begin() + begin)) << begin << " to " << end;
    ASSERT_EQ(reader.document_starts(begin, end), plain.starts_in(begin, end)) << begin << " to " << end;
  }
}

TEST_F(Reader, EqualsPlainArraysAcrossShards) {
  for (const std::int64_t vocabulary : {3LL, 65536LL, 65537LL, 2147483647LL}) {
    const auto documents = random_documents(random_in(200, 600), 90, vocabulary);
    const fs::path folder = folder_ / std::to_string(vocabulary);
    const CorpusManifest written = write_corpus(folder, documents, vocabulary, random_in(1, 4000));
    EXPECT_EQ(written.documents(), static_cast<std::int64_t>(documents.size()));
    EXPECT_EQ(written.dtype, vocabulary <= 65536 ? DType::uint16 : DType::uint32);
    expect_same(CorpusReader(folder), PlainCorpus(documents), 300);
    verify_corpus(folder);
  }
}

TEST_F(Reader, SparseIndexOverManyDocuments) {
  // More documents than a block of the index holds, in shards of unequal size.
  const auto documents = random_documents(30'000, 7, 50);
  const CorpusManifest written = write_corpus(folder_.path(), documents, 50, 70'000);
  EXPECT_GE(written.shards.size(), 2U);
  expect_same(CorpusReader(folder_.path()), PlainCorpus(documents), 200);
}

TEST_F(Reader, ManyMoreShardsThanStayOpen) {
  const auto documents = random_documents(90, 5, 50);
  const CorpusManifest written = write_corpus(folder_.path(), documents, 50, 1);
  EXPECT_EQ(written.shards.size(), 90U);
  expect_same(CorpusReader(folder_.path()), PlainCorpus(documents), 50);
}

TEST_F(Reader, Boundaries) {
  // Two shards: documents of 3 and 2 tokens, then of 1 and 4.
  write_corpus(folder_.path(), {{1, 1, 1}, {2, 2}, {3}, {4, 4, 4, 4}}, 10, 4);
  const CorpusReader reader(folder_.path());
  ASSERT_EQ(reader.manifest().shards.size(), 2U);
  using Starts = std::vector<std::int64_t>;
  EXPECT_EQ(reader.document_starts(0, 10), (Starts{3, 5, 6}));
  EXPECT_EQ(reader.document_starts(0, 3), Starts{});
  EXPECT_EQ(reader.document_starts(3, 6), (Starts{5}));
  EXPECT_EQ(reader.document_starts(4, 5), Starts{});
  EXPECT_EQ(reader.document_starts(4, 99), (Starts{5, 6}));
  EXPECT_EQ(reader.document_starts(10, 99), Starts{});
  EXPECT_EQ(reader.samples(3), 3);
  EXPECT_EQ(reader.samples(9), 1);
  EXPECT_EQ(reader.samples(10), 0);
  std::vector<std::int32_t> beyond(3);
  EXPECT_THROW(reader.read(8, beyond), InternalError);
}

TEST_F(Reader, ForeignShards) {
  const auto documents = random_documents(400, 60, 1000);
  const PlainCorpus plain(documents);
  std::vector<std::uint64_t> ends(plain.starts.begin() + 1, plain.starts.end());
  ends.push_back(plain.tokens.size());
  const auto tokens = static_cast<std::int64_t>(plain.tokens.size());
  write_foreign(std::vector<std::uint16_t>(plain.tokens.begin(), plain.tokens.end()), ends, 1000, tokens, 400);
  expect_same(CorpusReader(folder_.path()), plain, 50);
  verify_corpus(folder_.path());
  write_foreign(std::vector<std::uint32_t>(plain.tokens.begin(), plain.tokens.end()), ends, 1000, tokens, 400);
  expect_same(CorpusReader(folder_.path()), plain, 50);
}

TEST_F(Reader, TokenBeyondTheVocabulary) {
  write_foreign<std::uint16_t>({5, 6, 9, 7, 10, 11}, {6}, 10, 6, 1);
  std::vector<std::int32_t> tokens(4);
  {
    const CorpusReader reader(folder_.path());
    reader.read(0, tokens);
    expect_user_error([&] { reader.read(2, tokens); }, {"part.h5", "token 10 ", "position 4 ", "vocabulary of 10"});
  }
  expect_user_error([&] { verify_corpus(folder_.path()); }, {"part.h5", "token 10 ", "position 4 "});
  write_foreign<std::uint32_t>({5, 4'000'000'000U}, {2}, 10, 2, 1);
  tokens.resize(2);
  expect_user_error([&] { CorpusReader(folder_.path()).read(0, tokens); }, {"token 4000000000 ", "position 1 "});
}

TEST_F(Reader, CountsThatDisagree) {
  write_foreign<std::uint16_t>({1, 2, 3}, {3}, 10, 4, 1);
  expect_refused({"part.h5", "/tokens holds 3 tokens", "says 4"});
  write_foreign<std::uint16_t>({1, 2, 3}, {1, 3}, 10, 3, 1);
  expect_refused({"part.h5", "/document_ends holds 2 documents", "says 1"});
  write_foreign<std::uint16_t>({1, 2, 3}, {1, 2}, 10, 3, 2);
  expect_refused({"part.h5", "last document ends at 2", "3 tokens"});
  write_foreign<std::uint16_t>({1, 2, 3}, {2, 2, 3}, 10, 3, 3);
  expect_user_error([&] { CorpusReader(folder_.path()).document_starts(0, 3); }, {"part.h5", "does not increase"});
  expect_user_error([&] { verify_corpus(folder_.path()); }, {"part.h5", "does not increase"});
}

TEST_F(Reader, TypesAndShapesThatDisagree) {
  write_foreign<std::uint32_t>({1, 2, 3}, {3}, 10, 3, 1);
  replace_in_manifest(folder_ / "manifest.yaml", "uint32", "uint16");
  expect_refused({"part.h5", "/tokens holds uint32", "uint16"});
  std::vector<std::uint16_t> tokens(6);
  {
    hdf5::File file = hdf5::File::create(folder_ / "part.h5");
    file.create_dataset("tokens", DType::uint16, {2, 3}).write({0, 0}, Tensor(tokens.data(), DType::uint16, {2, 3}));
    file.create_dataset("document_ends", DType::uint64, {1});
    file.close();
  }
  expect_refused({"part.h5", "[2, 3]", "one dimension"});
}

TEST_F(Reader, DamagedFiles) {
  const auto write_good = [&] { write_corpus(folder_.path(), random_documents(500, 100, 500), 500, 1'000'000); };
  const fs::path shard = folder_ / "shard-00000.h5";
  write_good();
  CorpusReader{folder_.path()};
  fs::resize_file(shard, fs::file_size(shard) / 2);
  expect_refused({"shard-00000.h5", "truncated"});
  write_file(shard, "this is no HDF5 file, whatever its name says");
  expect_refused({"shard-00000.h5", "not an HDF5 file"});
  write_file(shard, "");
  expect_refused({"shard-00000.h5", "empty"});
  fs::remove(shard);
  expect_refused({"shard-00000.h5", "no such file"});
  {
    hdf5::File file = hdf5::File::create(shard);
    file.create_dataset("something_else", DType::fp32, {3});
    file.close();
  }
  expect_refused({"shard-00000.h5", "tokens"});
}

TEST_F(Reader, FlippedBit) {
  const CorpusManifest written = write_corpus(folder_.path(), random_documents(50, 100, 250), 256, 1'000'000);
  verify_corpus(folder_.path());
  const fs::path shard = folder_ / "shard-00000.h5";
  std::string bytes = read_text(shard);
  // The tokens as they are stored, found by their first tokens.
  std::vector<std::int32_t> head(8);
  CorpusReader(folder_.path()).read(0, head);
  std::string stored;
  for (const std::int32_t token : head) stored += {static_cast<char>(token & 0xff), static_cast<char>(token >> 8)};
  const std::size_t at = bytes.find(stored);
  ASSERT_NE(at, std::string::npos);
  bytes[at + 4] = static_cast<char>(bytes[at + 4] ^ 1);
  write_file(shard, bytes);
  expect_user_error([&] { verify_corpus(folder_.path()); },
                    {"shard-00000.h5", "checksum", *written.shards[0].xxh3, "damaged"});
}

TEST_F(Reader, ChecksumIsOfTheStoredBytes) {
  for (const std::int64_t vocabulary : {300LL, 70'000LL}) {
    const auto documents = random_documents(20'000, 100, vocabulary);  // several buffers of the writer
    const fs::path folder = folder_ / std::to_string(vocabulary);
    const CorpusManifest written = write_corpus(folder, documents, vocabulary, 1'000'000'000);
    const PlainCorpus plain(documents);
    Hasher hasher;
    if (vocabulary == 300) {
      const std::vector<std::uint16_t> stored(plain.tokens.begin(), plain.tokens.end());
      hasher.update(stored.data(), stored.size() * 2);
    } else {
      hasher.update(plain.tokens.data(), plain.tokens.size() * 4);
    }
    ASSERT_EQ(written.shards.size(), 1U);
    EXPECT_EQ(written.shards[0].xxh3, hasher.digest());
  }
}

TEST_F(Reader, EmptyCorpus) {
  CorpusWriter(folder_.path(), plain_manifest(10), 100).finish(0);
  expect_refused({"no tokens"});
}

TEST_F(Reader, UnfinishedCorpusIsNone) {
  {
    CorpusWriter writer(folder_.path(), plain_manifest(10), 2);
    const std::vector<std::int32_t> tokens{1, 2, 3};
    writer.append(tokens);
    writer.end_document();
    EXPECT_THROW(writer.append(std::vector<std::int32_t>{10}), InternalError);
    EXPECT_THROW(writer.append(std::vector<std::int32_t>{-1}), InternalError);
  }
  expect_refused({"manifest.yaml"});
}

TEST_F(Reader, UnigramLoss) {
  write_corpus(folder_ / "train", {{0, 0, 0, 1}, {2, 0}}, 4, 100);
  write_corpus(folder_ / "heldout", {{0, 3}, {1}}, 4, 100);
  const CorpusReader train(folder_ / "train"), heldout(folder_ / "heldout");
  // Counts 4, 1, 1, 0 of 6 tokens, plus one each: 5, 2, 2, 1 of 10.
  const double expected = -(std::log(0.5) + std::log(0.1) + std::log(0.2)) / 3.0;
  EXPECT_NEAR(unigram_loss_nats(train, heldout, 4), expected, 1e-14);
  EXPECT_THROW(unigram_loss_nats(train, heldout, 3), InternalError);
}

TEST_F(Reader, ThroughputIsMeasured) {
  write_corpus(folder_.path(), random_documents(4000, 1000, 8000), 8000, 1'000'000'000);
  for (const bool shuffle : {false, true}) {
    const double speed = bench_reader(folder_.path(), {2048, shuffle, true, 0.2});
    EXPECT_GT(speed, 0.0);
    std::printf("    %s samples of 2048: %.0f M tokens/s\n", shuffle ? "shuffled" : "sequential", speed / 1e6);
  }
  expect_user_error(
      [&] {
        bench_reader(folder_.path(), {100'000'000, false, true, 0.1});
      },
      {"shorter than one sample"});
}

}  // namespace
}  // namespace fulmen
