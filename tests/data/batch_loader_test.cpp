// Batches against what the plain stream says; the same global batches for every number of data ranks; resuming; errors
// and shutdown of the reading thread.
#include "data/batch_loader.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <numeric>
#include <set>

#include <gtest/gtest.h>

#include "data/sampling_order.h"
#include "tests/data/corpus_fixture.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

using namespace testing_support;

// A row as it must be, straight from the definition.
void expect_row(const Batch& batch, std::int64_t row, const PlainCorpus& plain, std::int64_t sample, bool reset) {
  const std::int64_t length = batch.length, begin = sample * length, first = row * length;
  std::vector<std::int64_t> segments{first};
  for (std::int64_t i = 0; i < length; ++i) {
    const auto at = static_cast<std::size_t>(first + i);
    const auto starts = [&](std::int64_t p) { return std::binary_search(plain.starts.begin(), plain.starts.end(), p); };
    ASSERT_EQ(batch.tokens[at], plain.tokens[static_cast<std::size_t>(begin + i)]);
    ASSERT_EQ(batch.targets[at], plain.tokens[static_cast<std::size_t>(begin + i + 1)]);
    ASSERT_EQ(batch.weights[at], reset && starts(begin + i + 1) ? 0.0F : 1.0F)
        << "sample " << sample << " position " << i;
    ASSERT_EQ(batch.positions[at], i);
    if (reset && i > 0 && starts(begin + i)) segments.push_back(first + i);
  }
  segments.push_back(first + length);
  const auto low = std::find(batch.segments.begin(), batch.segments.end(), first);
  const auto high = std::find(batch.segments.begin(), batch.segments.end(), first + length);
  ASSERT_TRUE(low != batch.segments.end() && high != batch.segments.end());
  EXPECT_EQ(std::vector<std::int64_t>(low, high + 1), segments);
}

// The order of a whole batch, straight from the definition.
void expect_order(const Batch& batch) {
  std::vector<std::int32_t> places(batch.tokens.size());
  std::iota(places.begin(), places.end(), 0);
  const auto token = [&](std::int32_t place) { return batch.tokens[static_cast<std::size_t>(place)]; };
  std::ranges::stable_sort(places, {}, token);
  EXPECT_EQ(batch.order.places, places);
  EXPECT_EQ(static_cast<std::size_t>(batch.order.distinct), std::set(batch.tokens.begin(), batch.tokens.end()).size());
}

class Loader : public ::testing::Test {
 protected:
  PlainCorpus write(std::int64_t documents, std::int64_t longest) {
    const auto made = random_documents(documents, longest, 300);
    write_corpus(folder_.path(), made, 300, 2000);
    return PlainCorpus(made);
  }

  BatchLoaderOptions options(std::int64_t length, std::int64_t global_batch, std::int64_t micro_batch) const {
    BatchLoaderOptions made;
    made.sequence_length = length;
    made.global_batch = global_batch;
    made.micro_batch = micro_batch;
    made.seed = seed_;
    return made;
  }

  TemporaryFolder folder_;
  std::uint64_t seed_ = generator()();
};

TEST_F(Loader, RowsAreAsDefined) {
  const PlainCorpus plain = write(300, 40);
  const CorpusReader reader(folder_.path());
  for (const bool reset : {false, true}) {
    for (const std::int64_t length : {1, 2, 7, 64, 333}) {
      Batch batch = make_batch(3, length);
      std::fill(batch.weights.begin(), batch.weights.end(), std::nanf(""));
      std::vector<std::int64_t> samples;
      for (std::int64_t row = 0; row < 3; ++row) {
        samples.push_back(random_in(0, reader.samples(length) - 1));
        fill_row(reader, samples.back(), reset, batch, row);
      }
      for (std::int64_t row = 0; row < 3; ++row) {
        expect_row(batch, row, plain, samples[static_cast<std::size_t>(row)], reset);
      }
      expect_order(batch);
      EXPECT_EQ(batch.segments.front(), 0);
      EXPECT_EQ(batch.segments.back(), 3 * length);
      EXPECT_TRUE(std::is_sorted(batch.segments.begin(), batch.segments.end(), std::less_equal<>()));
      if (!reset) {
        EXPECT_EQ(batch.segments.size(), 4U);
        EXPECT_EQ(batch.target_count(), 3.0 * static_cast<double>(length));
      }
    }
  }
}

// Slices side by side are the whole; and they say how far their documents go on outside.
TEST_F(Loader, SlicesMakeTheWholeSample) {
  const PlainCorpus plain = write(300, 40);
  const CorpusReader reader(folder_.path());
  constexpr std::int64_t rows = 3;
  for (const bool reset : {false, true}) {
    for (const std::int64_t length : {1, 7, 64, 333}) {
      Batch whole = make_batch(rows, length);
      std::vector<std::int64_t> samples;
      for (std::int64_t row = 0; row < rows; ++row) {
        samples.push_back(random_in(0, reader.samples(length) - 1));
        fill_row(reader, samples.back(), reset, whole, row);
      }
      EXPECT_EQ(whole.tokens_before, std::vector<std::int64_t>(rows, 0));
      EXPECT_EQ(whole.tokens_after, std::vector<std::int64_t>(rows, 0));
      double targets = 0.0;
      for (std::int64_t begin = 0; begin < length;) {
        const std::int64_t end = random_in(begin + 1, length);
        Batch slice = make_batch(rows, length, begin, end);
        std::fill(slice.weights.begin(), slice.weights.end(), std::nanf(""));
        for (std::int64_t row = 0; row < rows; ++row) {
          fill_row(reader, samples[static_cast<std::size_t>(row)], reset, slice, row);
          const std::int64_t first = row * (end - begin), of_whole = row * length;
          for (std::int64_t t = begin; t < end; ++t) {
            const auto at = static_cast<std::size_t>(first + t - begin), place = static_cast<std::size_t>(of_whole + t);
            ASSERT_EQ(slice.tokens[at], whole.tokens[place]);
            ASSERT_EQ(slice.targets[at], whole.targets[place]);
            ASSERT_EQ(slice.weights[at], whole.weights[place]);
            ASSERT_EQ(slice.positions[at], whole.positions[place]);
            if (t == begin) continue;
            const auto is_start = [](const Batch& batch, std::size_t i) {
              return std::ranges::count(batch.segments, static_cast<std::int64_t>(i)) == 1;
            };
            ASSERT_EQ(is_start(slice, at), is_start(whole, place));
          }
          const auto starts = [&](std::int64_t t) {
            const std::int64_t token = samples[static_cast<std::size_t>(row)] * length + t;
            return t == 0 || t == length ||
                   (reset && std::binary_search(plain.starts.begin(), plain.starts.end(), token));
          };
          std::int64_t before = 0, after = 0;
          while (!starts(begin - before)) ++before;
          while (!starts(end + after)) ++after;
          EXPECT_EQ(slice.tokens_before[static_cast<std::size_t>(row)], before);
          EXPECT_EQ(slice.tokens_after[static_cast<std::size_t>(row)], after);
        }
        expect_order(slice);
        EXPECT_EQ(slice.segments.back(), rows * (end - begin));
        targets += slice.target_count();
        begin = end;
      }
      EXPECT_EQ(targets, whole.target_count());
    }
  }
}

TEST_F(Loader, RowsAreFilledInOrder) {
  write(300, 40);
  const CorpusReader reader(folder_.path());
  Batch batch = make_batch(2, 5);
  EXPECT_THROW(fill_row(reader, 0, true, batch, 1), InternalError);
}

TEST_F(Loader, FollowsTheSamplingOrder) {
  const PlainCorpus plain = write(120, 40);
  for (const bool shuffle : {false, true}) {
    BatchLoaderOptions given = options(50, 6, 2);
    given.shuffle = shuffle;
    given.data_ranks = 1;
    given.read_ahead = 2;
    BatchLoader loader(folder_.path(), given);
    const std::int64_t samples = CorpusReader(folder_.path()).samples(50);
    const SamplingOrder order(samples, seed_, shuffle);
    for (std::int64_t place = 0; place < 3 * samples;) {  // into the third epoch
      const Batch batch = loader.next();
      ASSERT_EQ(batch.batch, 2);
      expect_order(batch);
      for (std::int64_t row = 0; row < 2; ++row) expect_row(batch, row, plain, order.at(place++), true);
    }
  }
}

// The tokens of each sample of one step, over all ranks, as a sorted list.
std::vector<std::vector<std::int32_t>> global_batch_of(const std::filesystem::path& folder, BatchLoaderOptions options,
                                                       int data_ranks, std::int64_t micro_batch, int step) {
  std::vector<std::vector<std::int32_t>> samples;
  for (int rank = 0; rank < data_ranks; ++rank) {
    options.data_ranks = data_ranks;
    options.data_rank = rank;
    options.micro_batch = micro_batch;
    BatchLoader loader(folder, options);
    const std::int64_t per_step = options.global_batch / (data_ranks * micro_batch);
    for (std::int64_t m = 0; m < step * per_step; ++m) loader.next();
    for (std::int64_t m = 0; m < per_step; ++m) {
      const Batch batch = loader.next();
      for (std::int64_t row = 0; row < batch.batch; ++row) {
        const auto first = batch.tokens.begin() + row * batch.length;
        samples.emplace_back(first, first + batch.length);
      }
    }
  }
  // In the order of ranks and micro-batches, it is even the same list.
  return samples;
}

TEST_F(Loader, GlobalBatchesDoNotDependOnTheRanks) {
  write(200, 40);
  const BatchLoaderOptions given = options(30, 12, 1);
  for (const int step : {0, 1, 5}) {
    const auto expected = global_batch_of(folder_.path(), given, 1, 12, step);
    ASSERT_EQ(expected.size(), 12U);
    for (const auto& [ranks, micro] :
         std::vector<std::pair<int, std::int64_t>>{{1, 1}, {2, 3}, {3, 2}, {4, 3}, {6, 1}, {12, 1}}) {
      EXPECT_EQ(global_batch_of(folder_.path(), given, ranks, micro, step), expected) << ranks << " ranks";
    }
  }
}

TEST_F(Loader, ResumesAtASample) {
  write(200, 40);
  BatchLoaderOptions given = options(30, 8, 2);
  given.data_ranks = 2;
  given.data_rank = 1;
  BatchLoader whole(folder_.path(), given);
  for (int m = 0; m < 2 * 7; ++m) whole.next();  // two micro-batches a step
  given.first_sample = 7 * 8;
  BatchLoader resumed(folder_.path(), given);
  for (int m = 0; m < 10; ++m) {
    const Batch a = whole.next(), b = resumed.next();
    EXPECT_EQ(a.tokens, b.tokens);
    EXPECT_EQ(a.targets, b.targets);
    EXPECT_EQ(a.weights, b.weights);
    EXPECT_EQ(a.segments, b.segments);
    EXPECT_EQ(a.order.places, b.order.places);
  }
}

TEST_F(Loader, CorpusShorterThanOneSample) {
  write_corpus(folder_.path(), {{1, 2, 3}}, 10, 100);
  BatchLoader(folder_.path(), options(2, 1, 1)).next();
  expect_user_error([&] { BatchLoader loader(folder_.path(), options(3, 1, 1)); },
                    {folder_.path().string(), "shorter than one sample", "3 tokens", "needs 4"});
  expect_user_error([&] { BatchLoader loader(folder_ / "nowhere", options(3, 1, 1)); }, {"nowhere"});
}

TEST_F(Loader, ErrorsOfTheThreadReachNext) {
  // The first sample is good, the second has a token beyond the vocabulary.
  write_foreign_shard<std::uint16_t>(folder_ / "part.h5", {1, 2, 3, 4, 99, 5, 6}, {7});
  CorpusManifest manifest = plain_manifest(10);
  manifest.shards = {{"part.h5", 7, 1, std::nullopt}};
  write_corpus_manifest(folder_.path(), manifest);
  BatchLoaderOptions given = options(3, 1, 1);
  given.shuffle = false;
  BatchLoader loader(folder_.path(), given);
  EXPECT_EQ(loader.next().tokens, (std::vector<std::int32_t>{1, 2, 3}));
  for (int again = 0; again < 3; ++again) {
    expect_user_error([&] { loader.next(); }, {"part.h5", "token 99 ", "position 4 "});
  }
}

TEST_F(Loader, EndsPromptly) {
  write(2000, 400);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < 12; ++i) {
    BatchLoaderOptions given = options(1000, 32, 32);
    given.read_ahead = i % 3 + 1;
    BatchLoader loader(folder_.path(), given);
    if (i % 2 == 0) loader.next();
  }
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 10.0);
}

}  // namespace
}  // namespace fulmen
