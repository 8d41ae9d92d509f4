// Softmax attention over slices of a sequence: how much each rank sends, and how much each computes.
#include <gtest/gtest.h>

#include "model/families/llama/config.h"
#include "model/zigzag.h"
#include "tests/mpi_main.h"
#include "tests/parallel/rank_groups.h"
#include "tests/train/counting_communicator.h"
#include "tests/train/sample_batches.h"
#include "train/model_runner.h"

namespace fulmen {
namespace {

constexpr std::int64_t layers = 2, query_width = 32, key_width = 16;

LlamaConfig model() {
  LlamaConfig config;
  config.layers = layers;
  config.hidden = 24;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_width = 8;
  config.glu = 40;
  config.vocabulary = 50;
  return config;
}

// Bytes that this rank sends to the other slices in a step on `ranks` sequence ranks.
std::size_t bytes_of_a_step(int ranks, std::int64_t sample_length, const std::string& overlap) {
  CountedBytes bytes;
  CountingCommunicator world(test_world().subgroup(first_ranks(ranks)), first_ranks(ranks), bytes);
  ModelRunnerOptions options;
  options.layout.sequence = ranks;
  options.layout.overlap = overlap;
  options.micro_batch = {sample_rows, sample_length};
  Mesh mesh(mesh_shape(options.layout, ranks), world);
  ExecutionResources resources(Device::cpu());
  ModelRunner runner(model(), options, mesh, resources.execution());
  runner.parameters().initialize(1, resources.execution());
  const std::vector<Batch> batches = {
      sample_slice(sample_length, sequence_slice(sample_length, ranks, mesh.coordinate(Axis::sequence)))};
  runner.accumulate(batches, {});
  std::size_t sent = 0;
  for (const auto& [members, kinds] : bytes)
    if (kinds.contains("send")) sent += kinds.at("send");
  return sent;
}

Zigzag zigzag_of(int ranks, std::int64_t sample_length) {
  std::vector<std::int64_t> starts;
  for (int rank = 0; rank < ranks; ++rank) starts.push_back(sequence_slice(sample_length, ranks, rank).begin);
  starts.push_back(sample_length);
  return Zigzag(starts);
}

// fp32. Tokens also have a position and the first position that they see.
std::size_t expected_bytes(const Zigzag& zigzag, int rank) {
  constexpr std::int64_t marks = 2 * sizeof(std::int64_t), position = sizeof(std::int64_t), number = sizeof(float);
  const auto rows = [&](int half) { return sample_rows * zigzag.tokens(half).size(); };
  const auto pair = [&](int owner) { return rows(zigzag.work(owner)[0]) + rows(zigzag.work(owner)[1]); };
  const int ranks = zigzag.ranks();
  std::int64_t sent = 0;
  for (int half = 0; half < zigzag.halves(); ++half) {
    const int home = Zigzag::home(half), worker = zigzag.worker(half), holds_keys = (worker + ranks - 1) % ranks;
    if (home == rank && worker != rank)  // forward: queries, keys, values; backward: results and their gradients, too
      sent += rows(half) * (2 * marks + number * (2 * (query_width + 2 * key_width) + 2 * query_width));
    if (worker == rank && home != rank) sent += rows(half) * number * 2 * query_width;    // results, queries' gradients
    if (holds_keys == rank && home != rank) sent += rows(half) * number * 2 * key_width;  // sums of keys' gradients
  }
  for (int step = 0; step + 1 < ranks; ++step) {
    const std::int64_t block = pair((rank + ranks - step) % ranks);
    sent += block * 2 * (number * 2 * key_width + position);  // keys and values, in both passes
    sent += block * number * 2 * key_width;                   // their gradients
  }
  return static_cast<std::size_t>(layers * sent);
}

TEST(Ring, SendsEachBlockOncePerHop) {
  for (const int ranks : {2, 3, 4}) {
    if (test_world().rank() >= ranks) continue;
    for (const std::int64_t length : {std::int64_t{48}, std::int64_t{49}})
      for (const std::string overlap : {"none", "sequence"}) {
        SCOPED_TRACE(fmt::format("{} ranks, {} tokens, overlap {}", ranks, length, overlap));
        EXPECT_EQ(bytes_of_a_step(ranks, length, overlap),
                  expected_bytes(zigzag_of(ranks, length), test_world().rank()));
      }
  }
}

// Pairs of a query and a key that it sees.
std::int64_t pairs(const Zigzag& zigzag, int rank) {
  std::int64_t sum = 0;
  for (const int half : zigzag.work(rank))
    for (std::int64_t token = zigzag.tokens(half).begin; token < zigzag.tokens(half).end; ++token) sum += token + 1;
  return sum;
}

TEST(Ring, SharesCausalWorkOutEvenly) {
  for (const int ranks : {2, 3, 4, 8}) {
    const std::int64_t length = std::int64_t{24} * ranks, whole = length * (length + 1) / 2;
    const Zigzag even = zigzag_of(ranks, length), ragged = zigzag_of(ranks, length + 1);
    for (int rank = 0; rank < ranks; ++rank) {
      EXPECT_EQ(pairs(even, rank) * ranks, whole) << "rank " << rank << " of " << ranks;
      EXPECT_LT(pairs(ragged, rank), pairs(even, rank) + 2 * length) << "a token more in each half at most";
    }
  }
}

// Each step of the ring has two blocks of a half by a half, where the first has one of them as two halves of the
// diagonal: no rank waits for another that has more to compute.
TEST(Ring, SharesEachStepOutEvenly) {
  for (const int ranks : {2, 3, 4, 8}) {
    const Zigzag zigzag = zigzag_of(ranks, std::int64_t{24} * ranks);
    for (int rank = 0; rank < ranks; ++rank)
      for (int owner = 0; owner < ranks; ++owner) {
        double blocks = 0.0;
        for (const int queries : zigzag.work(rank))
          for (const int keys : zigzag.work(owner)) blocks += keys < queries ? 1.0 : keys == queries ? 0.5 : 0.0;
        EXPECT_EQ(blocks, 2.0) << "rank " << rank << " with the keys of " << owner << " of " << ranks;
      }
  }
}

}  // namespace
}  // namespace fulmen
