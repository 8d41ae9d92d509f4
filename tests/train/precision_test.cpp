// Training in the device's own precision follows training in a wider precision: bf16 on the GPU against fp32 on the
// CPU. Both have the same initial weights and text, and checkpoints pass between the two. On the CPU: fp32 against
// fp64.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include <gtest/gtest.h>

#include "checkpoint/parameters.h"
#include "data/batch_loader.h"
#include "framework/bfloat16.h"
#include "framework/random.h"
#include "model/piece_transfer.h"
#include "tests/framework/temporary_folder.h"
#include "tests/golden.h"
#include "tests/kernels/kernel_test.h"
#include "train/learning_rate.h"
#include "train/optimizer.h"
#include "train/training_state.h"

namespace fulmen {
namespace {

constexpr std::int64_t vocabulary = 256;
// The setting of a step. The CPU's own comparison is short.
const std::int64_t rows = testing::on_gpu() ? 8 : 4, length = testing::on_gpu() ? 256 : 128;
const std::int64_t steps = testing::on_gpu() ? 300 : 40;

Precision device_precision() { return {testing::on_gpu() ? DType::bf16 : DType::fp32, DType::fp32}; }
Precision wide_precision() {
  const DType dtype = testing::on_gpu() ? DType::fp32 : DType::fp64;
  return {dtype, dtype};
}

// Heads as wide as in the released models.
TransnormerConfig model_config() {
  TransnormerConfig config;
  config.layers = 2;
  config.hidden = 256;
  config.heads = 2;
  config.glu = 512;
  config.vocabulary = vocabulary;
  return config;
}

// Text that can be learnt: each token has four likely successors (probabilities 0.6, 0.2, 0.1, 0.05; entropy 1.4 nats
// with the rest, which is uniform).
class MarkovText {
 public:
  MarkovText() {
    const RandomStream random(1, "successors");
    for (std::size_t i = 0; i < successors_.size(); ++i)
      successors_[i] = static_cast<std::int32_t>(random.bits(i) % vocabulary);
  }

  Batch batch(std::int64_t step) const {
    const RandomStream random(2, "text");
    Batch batch = make_batch(rows, length);
    batch.segments.clear();
    for (std::int64_t row = 0; row < rows; ++row) {
      auto index = static_cast<std::uint64_t>((step * rows + row) * (length + 1));
      auto token = static_cast<std::int32_t>(random.bits(index++) % vocabulary);
      batch.segments.push_back(row * length);
      for (std::int64_t t = 0; t < length; ++t) {
        const auto place = static_cast<std::size_t>(row * length + t);
        batch.tokens[place] = token;
        token = successor(token, random.uniform(index++));
        batch.targets[place] = token;
        batch.weights[place] = 1.0f;
        batch.positions[place] = t;
      }
    }
    batch.segments.push_back(rows * length);
    batch.order = stable_order(batch.tokens);
    return batch;
  }

 private:
  std::int32_t successor(std::int32_t token, double u) const {
    constexpr double limits[] = {0.6, 0.8, 0.9, 0.95};
    for (std::size_t k = 0; k < 4; ++k)
      if (u < limits[k]) return successors_[static_cast<std::size_t>(token) * 4 + k];
    return static_cast<std::int32_t>((u - 0.95) / 0.05 * vocabulary) % vocabulary;
  }

  std::vector<std::int32_t> successors_ = std::vector<std::int32_t>(4 * vocabulary);
};

// A model in training on one rank.
class Trainee {
 public:
  Trainee(Device device, Precision precision)
      : resources_(device),
        ranks_(make_self_communicator()),
        mesh_(MeshShape{}, *ranks_),
        runner_(model_config(), options(precision), mesh_, execution()),
        optimizer_(OptimizerConfig{}, 1.0, runner_.parameters(), mesh_, execution()) {
    runner_.parameters().initialize(7, execution(), optimizer_.master().flat());
    optimizer_.master().round(execution());
    schedule_.warmup_steps = 20;
    schedule_.minimum = 1e-4;
  }

  double step(std::int64_t t) {
    const double rate = learning_rate(schedule_, 1e-3, t, steps);
    const std::vector<Batch> batches = {text_.batch(t)};
    return runner_.accumulate(batches, [&] { optimizer_.step(rate, t); }).loss_nats;
  }
  void save(const std::filesystem::path& folder, std::int64_t step) {
    save_training_state(folder, model_config(), "", {step, step * rows, step * rows * length}, runner_, optimizer_, {},
                        *ranks_);
  }
  std::int64_t load(const std::filesystem::path& folder) {
    const CheckpointReader checkpoint(find_checkpoint(folder));
    return load_training_state(checkpoint, model_config(), runner_, optimizer_, *ranks_).step;
  }

  // All groups, end to end.
  std::vector<double> master() const { return values(optimizer_.master().flat()); }
  std::vector<double> weights() const { return values(runner_.parameters().flat_weights()); }
  std::vector<double> moments() const { return values(optimizer_.exp_avg_sq()); }

 private:
  static ModelRunnerOptions options(Precision precision) {
    ModelRunnerOptions options;
    options.precision = precision;
    options.micro_batch = {rows, length};
    return options;
  }
  const Execution& execution() const { return resources_.execution(); }
  std::vector<double> values(const std::vector<Tensor>& flat) const {
    std::vector<double> all;
    for (const Tensor& tensor : flat) {
      std::vector<double> part;
      if (tensor.dtype() == DType::bf16) {
        std::vector<BFloat16> narrow(static_cast<std::size_t>(tensor.elements()));
        copy_piece_to_host(execution(), tensor, narrow.data());
        for (const BFloat16 x : narrow) part.push_back(to_float(x));
      } else {
        part = host_values(execution(), tensor);
      }
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  MarkovText text_;
  LearningRateConfig schedule_;
  ExecutionResources resources_;
  std::unique_ptr<Communicator> ranks_;
  Mesh mesh_;
  ModelRunner runner_;
  Optimizer optimizer_;
};

// Each of `dtype`, as a device keeps them.
std::vector<double> rounded(const std::vector<double>& values, DType dtype) { return testing::rounded(values, dtype); }

// The largest relative difference of two curves, smoothed over a window, and where.
struct Largest {
  double difference = 0.0;
  std::int64_t step = 0;
};
Largest compare_smoothed(const std::vector<double>& a, const std::vector<double>& b, std::int64_t window) {
  Largest largest;
  for (auto end = window; end <= static_cast<std::int64_t>(b.size()); ++end) {
    const auto mean = [&](const std::vector<double>& x) {
      return std::accumulate(x.begin() + (end - window), x.begin() + end, 0.0) / static_cast<double>(window);
    };
    const double difference = std::abs(mean(a) / mean(b) - 1.0);
    if (!(difference <= largest.difference)) largest = {difference, end};
  }
  return largest;
}

TEST(Precision, TheLossFollowsThatOfAWiderPrecision) {
  Trainee narrow(testing::test_device(), device_precision()), wide(Device::cpu(), wide_precision());
  std::vector<double> narrow_losses, wide_losses;
  for (std::int64_t t = 0; t < steps; ++t) {
    narrow_losses.push_back(narrow.step(t));
    wide_losses.push_back(wide.step(t));
    ASSERT_TRUE(std::isfinite(narrow_losses.back()) && std::isfinite(wide_losses.back())) << "step " << t;
  }
  const Largest largest = compare_smoothed(narrow_losses, wide_losses, 20);
  std::printf(
      "largest difference of the smoothed losses: %.4f %% at step %lld; the loss fell from %.3f to %.3f, in the "
      "wider precision to %.3f\n",
      100.0 * largest.difference, static_cast<long long>(largest.step), narrow_losses.front(), narrow_losses.back(),
      wide_losses.back());
  EXPECT_LE(largest.difference, testing::on_gpu() ? 5e-3 : 1e-4);
  EXPECT_NEAR(wide_losses.front(), std::log(static_cast<double>(vocabulary)), 0.5) << "nothing is known yet";
  EXPECT_LT(wide_losses.back(), (testing::on_gpu() ? 0.4 : 0.6) * wide_losses.front()) << "the text can be learnt";
}

TEST(Precision, TheMasterDoesNotDependOnIt) {
  const Trainee narrow(testing::test_device(), device_precision()), wide(Device::cpu(), wide_precision());
  const DType master = device_precision().master();
  const std::vector<double> expected = wide.master();
  if (testing::on_gpu()) {
    EXPECT_EQ(narrow.master(), expected) << "bit for bit";
  } else {
    EXPECT_EQ(rounded(narrow.master(), master), rounded(expected, master));
  }
  // Theta stays in fp64 in all of them.
  const std::vector<double> weights = narrow.weights(), masters = narrow.master();
  ASSERT_EQ(weights.size(), masters.size());
  std::size_t changed = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    if (weights[i] == masters[i]) continue;
    ++changed;
    ASSERT_EQ(weights[i], to_float(to_bfloat16(static_cast<float>(masters[i])))) << i;
  }
  EXPECT_EQ(changed > weights.size() / 2, testing::on_gpu()) << changed << " weights differ from their master";
}

TEST(Precision, CheckpointsPassBetweenThem) {
  const testing_support::TemporaryFolder folder;
  Trainee narrow(testing::test_device(), device_precision());
  for (std::int64_t t = 0; t < 3; ++t) narrow.step(t);
  narrow.save(folder / "narrow", 3);

  Trainee wide(Device::cpu(), wide_precision());
  EXPECT_EQ(wide.load(folder / "narrow"), 3);
  EXPECT_EQ(wide.master(), narrow.master()) << "a checkpoint holds the master, which is as exact here";
  EXPECT_EQ(wide.moments(), narrow.moments());
  for (std::int64_t t = 3; t < 5; ++t) {
    const double here = narrow.step(t), there = wide.step(t);
    EXPECT_NEAR(there, here, 1e-2 * here) << "step " << t;
  }
  wide.save(folder / "wide", 5);

  Trainee resumed(testing::test_device(), device_precision());
  EXPECT_EQ(resumed.load(folder / "wide"), 5);
  const DType master = device_precision().master();
  EXPECT_EQ(rounded(resumed.master(), master), rounded(wide.master(), master));
  const double next = resumed.step(5);
  EXPECT_NEAR(next, wide.step(5), 1e-2 * next);
}

// Evaluation and decoding have no master: the checkpoint is rounded as it is read.
TEST(Precision, ACheckpointIsReadIntoNarrowWeights) {
  const testing_support::TemporaryFolder folder;
  Trainee trainee(testing::test_device(), device_precision());
  trainee.save(folder.path(), 0);
  ExecutionResources resources(testing::test_device());
  const Execution& execution = resources.execution();
  const auto self = make_self_communicator();
  const Mesh mesh(MeshShape{}, *self);
  const TransnormerConfig config = model_config();
  const ParameterStore narrow(declare_stage(config, whole_model(config), 1), mesh, {DType::bf16, DType::fp32},
                              execution);
  const CheckpointReader checkpoint(find_checkpoint(folder.path()));
  load_pieces(checkpoint, narrow, narrow.flat_weights(), "parameters/", execution);
  std::size_t compared = 0;
  for (const ParameterPiece& piece : narrow.pieces(narrow.flat_weights())) {
    if (piece.memory.dtype() != DType::bf16) continue;
    const auto elements = static_cast<std::size_t>(piece.memory.elements());
    std::vector<BFloat16> read(elements);
    std::vector<float> saved(elements);
    copy_piece_to_host(execution, piece.memory, read.data());
    checkpoint.read({"parameters/" + piece.tensor, piece.global_shape, piece.offset,
                     Tensor(saved.data(), DType::fp32, piece.memory.shape())});
    for (std::size_t i = 0; i < elements; ++i) ASSERT_EQ(read[i].bits, to_bfloat16(saved[i]).bits) << piece.tensor;
    compared += elements;
  }
  EXPECT_EQ(compared, static_cast<std::size_t>(parameter_count(config) - config.hidden));  // all but theta
}

}  // namespace
}  // namespace fulmen
