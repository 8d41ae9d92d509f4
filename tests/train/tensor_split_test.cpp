// The effect of splitting the residual stream over tensor ranks, and that sums which travel behind products are the
// same.
#include <algorithm>
#include <cmath>

#include <gtest/gtest.h>

#include "tests/mpi_main.h"
#include "tests/parallel/rank_groups.h"
#include "tests/train/counting_communicator.h"
#include "tests/train/sample_batches.h"
#include "train/model_runner.h"

namespace fulmen {
namespace {

struct StepResult {
  CountedBytes bytes;
  std::size_t activations = 0;  // at most, in bytes
  double loss = 0.0;
  std::vector<std::vector<double>> gradients;
};

// One step of two micro-batches on `tensor` x `pipeline` ranks.
StepResult step(int tensor, int pipeline, bool split, const std::string& overlap) {
  StepResult result;
  const int ranks_used = tensor * pipeline;
  CountingCommunicator ranks(test_world().subgroup(first_ranks(ranks_used)), first_ranks(ranks_used), result.bytes);
  ModelRunnerOptions options;
  options.layout.tensor = tensor;
  options.layout.pipeline = pipeline;
  options.layout.tensor_sequence_split = split;
  options.layout.overlap = overlap;
  options.precision = {DType::fp64, DType::fp64};
  options.micro_batch = {sample_rows, 61};
  options.micro_batches = 2;
  Mesh mesh(mesh_shape(options.layout, ranks_used), ranks);
  ExecutionResources resources(Device::cpu());
  ModelRunner runner(sample_model(12), options, mesh, resources.execution());
  runner.parameters().initialize(1, resources.execution());
  const std::vector<Batch> batches(2, sample_slice(61, {0, 61}));
  result.loss = runner.accumulate(batches, {}).loss_nats;
  result.activations = resources.ledger().peak(MemoryKind::activations);
  for (const Tensor& flat : runner.parameters().flat_gradients())
    result.gradients.emplace_back(flat.as<double>(), flat.as<double>() + flat.elements());
  return result;
}

TEST(TensorSplit, ActivationsAndTransfersShrink) {
  if (test_world().rank() >= 4) return;
  const StepResult whole = step(2, 2, false, "none"), split = step(2, 2, true, "none");
  // 122 tokens over 2 ranks: each of the two sums of a layer shrinks by 61 rows of 96 fp64, and what the head keeps.
  EXPECT_LT(split.activations + 2 * 61 * 96 * sizeof(double), whole.activations);
  const int rank = test_world().rank();
  const std::vector<int> stages = {rank % 2, rank % 2 + 2}, tensor = {rank / 2 * 2, rank / 2 * 2 + 1};
  EXPECT_EQ(whole.bytes.at(stages).at("send"), 2 * 122 * 96 * sizeof(double));
  EXPECT_EQ(split.bytes.at(stages).at("send"), 2 * 61 * 96 * sizeof(double));
  EXPECT_FALSE(whole.bytes.at(tensor).contains("reduce_scatter"));
  EXPECT_TRUE(split.bytes.at(tensor).contains("reduce_scatter"));
}

// On more than two ranks a library may add in another order behind the computation. So may a product of some rows that
// is part of a ring.
TEST(TensorSplit, OverlapChangesNothing) {
  for (const int tensor : {2, 3}) {
    if (test_world().rank() >= tensor) continue;
    for (const bool split : {false, true}) {
      SCOPED_TRACE(fmt::format("{} ranks, split {}", tensor, split));
      const StepResult plain = step(tensor, 1, split, "none"), overlapped = step(tensor, 1, split, "tensor");
      const std::vector<int> all = first_ranks(tensor);
      CountedBytes expected = plain.bytes;
      if (split) {
        // In each layer two gathers and four scattered sums go round in a ring, for each of two micro-batches.
        const std::size_t ranks = static_cast<std::size_t>(tensor), passes = 3 * 2,
                          part = (122 + ranks - 1) / ranks * 96 * sizeof(double);
        expected[all]["all_gather"] -= 2 * passes * part;
        expected[all]["reduce_scatter"] -= 4 * passes * ranks * part;
        expected[all]["send"] += 6 * passes * (ranks - 1) * part;
      }
      EXPECT_EQ(expected, overlapped.bytes);
      if (tensor == 2 && !split) {
        EXPECT_EQ(plain.loss, overlapped.loss);
        EXPECT_TRUE(plain.gradients == overlapped.gradients);
      }
      double largest = 0.0, difference = 0.0;
      for (std::size_t group = 0; group < plain.gradients.size(); ++group)
        for (std::size_t i = 0; i < plain.gradients[group].size(); ++i) {
          largest = std::max(largest, std::abs(plain.gradients[group][i]));
          difference = std::max(difference, std::abs(plain.gradients[group][i] - overlapped.gradients[group][i]));
        }
      EXPECT_GT(largest, 0.0);
      EXPECT_LE(difference, 1e-13 * largest);
    }
  }
}

}  // namespace
}  // namespace fulmen
