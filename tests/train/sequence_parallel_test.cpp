// Traffic of sequence parallelism: states, whose bytes do not depend on the length; and refusals.
#include <gtest/gtest.h>

#include "tests/framework/expect_error.h"
#include "tests/mpi_main.h"
#include "tests/parallel/rank_groups.h"
#include "tests/train/counting_communicator.h"
#include "tests/train/sample_batches.h"
#include "train/model_runner.h"

namespace fulmen {
namespace {

// The bytes of this rank's operations in one step on tensor 2 x sequence 2.
CountedBytes bytes_of_a_step(std::int64_t sample_length, const std::string& overlap) {
  CountedBytes bytes;
  CountingCommunicator ranks(test_world().subgroup(first_ranks(4)), first_ranks(4), bytes);
  ModelRunnerOptions options;
  options.layout.tensor = 2;
  options.layout.sequence = 2;
  options.layout.overlap = overlap;
  options.micro_batch = {sample_rows, sample_length};
  Mesh mesh(mesh_shape(options.layout, 4), ranks);
  ExecutionResources resources(Device::cpu());
  ModelRunner runner(sample_model(), options, mesh, resources.execution());
  runner.parameters().initialize(1, resources.execution());
  const std::vector<Batch> batches = {
      sample_slice(sample_length, sequence_slice(sample_length, 2, mesh.coordinate(Axis::sequence)))};
  runner.accumulate(batches, {});
  return bytes;
}

TEST(SequenceParallel, BytesSentDoNotDependOnTheLength) {
  if (test_world().rank() >= 4) return;
  const int rank = test_world().rank();
  const std::vector<int> sequence = {rank % 2, rank % 2 + 2}, tensor = {rank / 2 * 2, rank / 2 * 2 + 1};
  for (const std::string overlap : {"none", "sequence"}) {
    const CountedBytes shorter = bytes_of_a_step(9, overlap), longer = bytes_of_a_step(144, overlap);
    EXPECT_EQ(shorter.at(sequence), longer.at(sequence)) << overlap;
    EXPECT_GE(longer.at(tensor).at("all_reduce"), 10 * shorter.at(tensor).at("all_reduce")) << "what does depend on it";
    // The states of both passes, once a layer: [rows, heads of a tensor rank, keys, values] in fp32, keys doubled by
    // LRPE.
    constexpr std::size_t state = sample_rows * 2 * 8 * 8 * sizeof(float);
    EXPECT_EQ(longer.at(sequence).at("all_gather"), 2 * (state + 2 * state + state)) << overlap;
  }
}

TEST(SequenceParallel, RefusesRanksWithoutTokens) {
  EXPECT_EQ(sequence_slice(5, 5, 4), (IndexRange{4, 5}));
  testing_support::expect_user_error([] { sequence_slice(5, 6, 0); },
                                     {"parallel.sequence", "6 ranks", "5 tokens", "at most 5"});
}

}  // namespace
}  // namespace fulmen
