// Shared by the model tests: small models with random weights on any place of a mesh. Also batches with documents and
// masked targets, and the passes over them.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "framework/stable_order.h"
#include "kernels/elementwise.h"
#include "model/stage.h"
#include "tests/golden.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {

// Sizes that divide nothing but what they must; weights large enough that every part of the model matters.
inline TransnormerConfig small_config(const std::string& variant, std::vector<std::int64_t> lrpe_layers = {0}) {
  TransnormerConfig config;
  config.variant = variant;
  config.layers = 2;
  config.hidden = 12;
  config.heads = 3;
  config.glu = 10;
  config.vocabulary = 17;
  config.gate_rank = variant == "tnl3" ? 5 : 0;
  config.lrpe_layers = std::move(lrpe_layers);
  config.initializer_std = 0.4;
  return config;
}

// max|actual - expected| / max|expected| is at most `tolerance`, however small the values are.
inline void expect_relative(const testing::Values& actual, const testing::Values& expected, double tolerance,
                            const std::string& what) {
  EXPECT_LE(relative_difference(actual, expected), tolerance) << what << ", FULMEN_TEST_SEED=" << testing::run_seed();
}

// A rank's place in a mesh that does not run: nothing but its number and the number of ranks.
class PlaceOnly final : public Communicator {
 public:
  PlaceOnly(int rank, int size) : rank_(rank), size_(size) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce(const Tensor&, ReduceOp, Stream) override { refuse(); }
  Pending start_all_reduce(const Tensor&, ReduceOp, Stream) override { refuse(); }
  void reduce_scatter(const Tensor&, const Tensor&, ReduceOp, Stream) override { refuse(); }
  Pending start_reduce_scatter(const Tensor&, const Tensor&, ReduceOp, Stream) override { refuse(); }
  void all_gather(const Tensor&, const Tensor&, Stream) override { refuse(); }
  Pending start_all_gather(const Tensor&, const Tensor&, Stream) override { refuse(); }
  void broadcast(const Tensor&, int, Stream) override { refuse(); }
  void exchange(std::span<const Transfer>, Stream) override { refuse(); }
  Pending start_exchange(std::span<const Transfer>, Stream) override { refuse(); }
  void barrier() override { refuse(); }
  std::unique_ptr<Communicator> subgroup(const std::vector<int>&) override { refuse(); }
  [[noreturn]] void abort(int) override { refuse(); }

 private:
  [[noreturn]] static void refuse() { throw InternalError("a place without a transport was asked to communicate"); }
  int rank_, size_;
};

// The surroundings of a model, on the device of the tests: on the GPU the single stream that testing::read and
// testing::write work in.
class TestExecution {
 public:
  TestExecution() {
    if (!testing::on_gpu()) own_ = std::make_unique<ExecutionResources>(Device::cpu());
    execution_ = resources().execution();
    execution_.deterministic = true;
  }
  const Execution& execution() const { return execution_; }
  MemoryLedger& ledger() { return resources().ledger(); }

 private:
  ExecutionResources& resources() { return own_ ? *own_ : testing::gpu_resources(); }
  std::unique_ptr<ExecutionResources> own_;
  Execution execution_;
};

// The parameters that one rank of a mesh holds.
class PlacedParameters {
 public:
  PlacedParameters(const TransnormerConfig& config, const StageRange& range, MeshShape shape, int rank,
                   Precision precision, const Sharding& sharding = {})
      : place_(rank, shape.ranks()),
        mesh_(shape, place_),
        store(declare_stage(config, range, shape.pipeline), mesh_, precision, resources_.execution(), sharding) {}

  void initialize(std::uint64_t seed) { store.initialize(seed, resources_.execution()); }
  const Mesh& mesh() const { return mesh_; }

 private:
  TestExecution resources_;
  PlaceOnly place_;
  Mesh mesh_;

 public:
  ParameterStore store;
};

// A stage that runs, alone or on the tensor group `tensor`. Weights are a function of the seed, whatever the layout.
class RunningModel {
 public:
  explicit RunningModel(const ModelConfig& config, std::optional<StageRange> range = {}, Communicator* tensor = nullptr,
                        DType dtype = DType::fp64, std::uint64_t seed = 1, Recompute recompute = Recompute::none)
      : self_(make_self_communicator()),
        mesh_({.tensor = tensor == nullptr ? 1 : tensor->size()}, tensor == nullptr ? *self_ : *tensor),
        config_(config.clone()),
        parameters(declare_stage(config, range.value_or(whole_model(config)), 1), mesh_, {dtype, dtype}, execution()),
        context_{execution(), &mesh_.along(Axis::tensor), &parameters},
        stage(config, range.value_or(whole_model(config)), context_, recompute) {
    parameters.initialize(seed, execution());
  }
  RunningModel(const RunningModel&) = delete;
  RunningModel& operator=(const RunningModel&) = delete;

  const Execution& execution() const { return resources_.execution(); }
  MemoryLedger& ledger() { return resources_.ledger(); }
  const ModelConfig& config() const { return *config_; }
  Communicator& tensor() { return mesh_.along(Axis::tensor); }
  LayerHooks& hooks() { return context_.hooks; }

  // The scaled loss of one micro-batch, forward only.
  double loss(const MicroBatch& batch) {
    fill_zero(execution(), stage.loss_sum());
    stage.forward(0, batch, {}, {}, false);
    return scaled_loss(batch);
  }
  // The same with gradients, added to earlier gradients.
  double loss_and_gradients(const MicroBatch& batch) {
    fill_zero(execution(), stage.loss_sum());
    stage.forward(0, batch, {}, {}, true);
    stage.backward(0, batch, {}, {});
    return scaled_loss(batch);
  }
  // Results of the last forward.
  double scaled_loss(const MicroBatch& batch) const {
    return testing::read(stage.loss_sum())[0] * testing::read(batch.loss_scale)[0];
  }

  // All gradients of the group's flat buffer.
  std::vector<testing::Values> gradients() const {
    std::vector<testing::Values> values;
    for (const Tensor& flat : parameters.flat_gradients()) values.push_back(testing::read(flat));
    return values;
  }

 private:
  TestExecution resources_;
  std::unique_ptr<Communicator> self_;
  Mesh mesh_;
  std::unique_ptr<const ModelConfig> config_;

 public:
  ParameterStore parameters;

 private:
  ModelContext context_;

 public:
  Stage stage;
};

// A random micro-batch that owns its arrays, on the device of the tests. With `documents`, rows hold several (one of
// them a single token) and some targets do not count.
class RandomBatch {
 public:
  RandomBatch(const BatchShape& shape, std::int64_t vocabulary, std::uint64_t seed, bool documents) : shape_(shape) {
    testing::Random random(seed);
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      const std::int64_t single = shape.length / 3;  // a document of one token
      for (std::int64_t t = 0; t < shape.length; ++t) {
        tokens_.push_back(static_cast<std::int32_t>(random.integer(0, vocabulary - 1)));
        targets_.push_back(static_cast<std::int32_t>(random.integer(0, vocabulary - 1)));
        weights_.push_back(documents && random.integer(0, 3) == 0 ? 0.0f : 1.0f);
        positions_.push_back(t);
        const bool starts = documents && (t == single || t == single + 1 || random.integer(0, 9) == 0);
        if (t == 0 || starts) segments_.push_back(b * shape.length + t);
      }
    }
    segments_.push_back(shape.tokens());
    double targets = 0.0;
    for (const float weight : weights_) targets += weight;
    scale_ = targets > 0.0 ? 1.0 / targets : 0.0;
    device_ = on_host();
    device_.tokens = memory_.integers<std::int32_t>({shape.tokens()}, tokens_);
    device_.targets = memory_.integers<std::int32_t>({shape.tokens()}, targets_);
    device_.weights = memory_.tensor(DType::fp32, {shape.tokens()}, {weights_.begin(), weights_.end()});
    device_.positions = memory_.integers<std::int64_t>({shape.batch, shape.length}, positions_);
    device_.segments = memory_.integers<std::int64_t>({static_cast<std::int64_t>(segments_.size())}, segments_);
    const StableOrder order = stable_order(tokens_);
    device_.order = {memory_.integers<std::int32_t>({shape.tokens()}, order.places), order.distinct, order.longest_run};
    device_.loss_scale = memory_.tensor(DType::fp64, {1}, {scale_});
  }
  RandomBatch(const RandomBatch&) = delete;
  RandomBatch& operator=(const RandomBatch&) = delete;

  const MicroBatch& view() const { return device_; }
  // The same in host memory, for who computes by hand.
  MicroBatch on_host() {
    MicroBatch batch;
    batch.shape = shape_;
    batch.tokens = Tensor(tokens_.data(), DType::int32, {shape_.tokens()});
    batch.targets = Tensor(targets_.data(), DType::int32, {shape_.tokens()});
    batch.weights = Tensor(weights_.data(), DType::fp32, {shape_.tokens()});
    batch.positions = Tensor(positions_.data(), DType::int64, {shape_.batch, shape_.length});
    batch.segments = Tensor(segments_.data(), DType::int64, {static_cast<std::int64_t>(segments_.size())});
    batch.loss_scale = Tensor(&scale_, DType::fp64, {1});
    return batch;
  }
  // Position t of every row alone, for decoding. `storage` keeps what the view points to.
  MicroBatch column(std::int64_t t, testing::Host& storage) const {
    std::vector<std::int32_t> tokens;
    std::vector<std::int64_t> positions;
    for (std::int64_t b = 0; b < shape_.batch; ++b) {
      tokens.push_back(tokens_[static_cast<std::size_t>(b * shape_.length + t)]);
      positions.push_back(positions_[static_cast<std::size_t>(b * shape_.length + t)]);
    }
    MicroBatch batch;
    batch.shape = {shape_.batch, 1};
    batch.tokens = storage.integers<std::int32_t>({shape_.batch}, tokens);
    batch.positions = storage.integers<std::int64_t>({shape_.batch, 1}, positions);
    return batch;
  }

 private:
  BatchShape shape_;
  std::vector<std::int32_t> tokens_, targets_;
  std::vector<float> weights_;
  std::vector<std::int64_t> positions_, segments_;
  double scale_ = 0.0;
  testing::Host memory_;
  MicroBatch device_;
};

}  // namespace fulmen
