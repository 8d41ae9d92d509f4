// The data that ZeRO shards: bytes on each rank as theory says, sums at their owners, whole weights at each use.
// Nothing is allocated in a step. On four ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "model/families/transnormer/config.h"
#include "tests/kernels/kernel_test.h"
#include "tests/mpi_main.h"
#include "train/model_runner.h"
#include "train/optimizer.h"
#include "train/training_state.h"

namespace fulmen {
namespace {

constexpr int ranks = 4;

struct Way {
  int zero;
  const char* group;
  const char* overlap;
};
void PrintTo(const Way& way, std::ostream* out) {
  *out << "zero " << way.zero << " over " << way.group << ", overlap " << way.overlap;
}

const std::vector<Way> ways = {{0, "all", "none"}, {0, "all", "auto"}, {1, "all", "none"},    {1, "2", "auto"},
                               {2, "all", "none"}, {2, "2", "auto"},   {2, "all", "auto"},    {3, "all", "none"},
                               {3, "all", "auto"}, {3, "2", "none"},   {3, "all", "weights"}, {3, "2", "gradients"}};

TransnormerConfig small_model() {
  TransnormerConfig config;
  config.variant = "tnl3";
  config.layers = 3;
  config.hidden = 24;
  config.heads = 3;
  config.glu = 22;
  config.gate_rank = 5;
  config.vocabulary = 61;
  config.lrpe_layers = {0, 2};
  return config;
}

// Elements of a weight with the gap behind it, and of a bucket cut into n parts.
std::int64_t aligned(std::int64_t n, std::int64_t unit = 64) { return (n + unit - 1) / unit * unit; }

class ShardedRun : public ::testing::TestWithParam<Way> {
 protected:
  ShardedRun() : resources_(Device::cpu()), mesh_({.data = ranks}, test_world()) {
    options_.layout.data = ranks;
    options_.layout.zero = GetParam().zero;
    options_.layout.zero_group = GetParam().group;
    options_.layout.overlap = GetParam().overlap;
    options_.layout.bucket_elements = 1;
    options_.precision = {DType::fp32, DType::fp32};
    options_.micro_batch = {2, 10};
    options_.micro_batches = 3;
  }
  std::vector<Batch> batches() const {
    std::vector<Batch> list;
    for (int m = 0; m < options_.micro_batches; ++m) {
      Batch batch;
      batch.batch = 2;
      batch.length = batch.sample_length = 10;
      batch.tokens_before = batch.tokens_after = {0, 0};
      const RandomStream random(5, fmt::format("{} {}", m, test_world().rank()));
      for (std::int64_t i = 0; i < 20; ++i) {
        batch.tokens.push_back(static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(2 * i)) % 61));
        batch.targets.push_back(static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(2 * i + 1)) % 61));
        batch.weights.push_back(1.0f);
        batch.positions.push_back(i % 10);
      }
      batch.segments = {0, 10, 20};
      batch.order = stable_order(batch.tokens);
      list.push_back(std::move(batch));
    }
    return list;
  }
  std::size_t bytes(MemoryKind kind) const { return resources_.ledger().current(kind); }

  mutable ExecutionResources resources_;
  Mesh mesh_;
  ModelRunnerOptions options_;
};

// The table in docs/architecture.md, from the model's sizes alone.
TEST_P(ShardedRun, HoldsTheBytesThatTheoryGives) {
  const TransnormerConfig c = small_model();
  ModelRunner runner(c, options_, mesh_, resources_.execution());
  Optimizer optimizer({}, 1.0, runner.parameters(), mesh_, resources_.execution());
  const int zero = GetParam().zero;
  const std::int64_t n = zero == 0 ? 1 : GetParam().group == std::string("2") ? 2 : ranks, d = c.hidden;
  const std::int64_t layer = aligned(aligned(3 * d * d) + aligned(5 * d) + aligned(d * 5) + aligned(d * d) +
                                         aligned(2 * c.glu * d) + aligned(c.glu * d),
                                     64 * n);
  const std::int64_t matrices = c.layers * layer, embedding = aligned(c.vocabulary * d, 64 * n);
  const std::int64_t theta = 2 * aligned(d, 64 * n);
  const std::string overlap = GetParam().overlap;
  const std::int64_t gradient_slots = overlap == "auto" || overlap == "gradients" ? 2 : 1;
  const std::int64_t weight_slots = overlap == "auto" || overlap == "weights" ? 2 : 1;
  const std::int64_t weights = 4 * ((zero < 3 ? matrices : matrices / n + weight_slots * layer) + embedding) +
                               8 * theta + 8 * c.layers * c.heads;  // the decay slopes
  const std::int64_t gradients =
      4 * ((zero < 2 ? matrices : matrices / n + gradient_slots * layer) + embedding) + 8 * theta;
  const std::int64_t optimizer_bytes = 2 * (4 * (matrices + embedding) + 8 * theta) / n + 8 * (adamw_scalars + 2);
  EXPECT_EQ(bytes(MemoryKind::weights), static_cast<std::size_t>(weights));
  EXPECT_EQ(bytes(MemoryKind::gradients), static_cast<std::size_t>(gradients));
  EXPECT_EQ(bytes(MemoryKind::optimizer), static_cast<std::size_t>(optimizer_bytes));
}

TEST_P(ShardedRun, AStepAllocatesNothing) {
  ModelRunner runner(small_model(), options_, mesh_, resources_.execution());
  Optimizer optimizer({}, 1.0, runner.parameters(), mesh_, resources_.execution());
  initialize_training_state(3, runner, optimizer);
  const std::vector<Batch> list = batches();
  std::size_t after_first = 0;
  for (int t = 0; t < 3; ++t) {
    runner.accumulate(list, [&] { optimizer.step(1e-3, t); });
    if (t == 0) after_first = resources_.ledger().current_total();
  }
  EXPECT_EQ(resources_.ledger().current_total(), after_first);
  EXPECT_EQ(resources_.ledger().peak_total(), after_first);
}

// Three layers and a table by hand: every rank adds what it knows, in every micro-batch.
class SummedByHand : public ShardedRun {
 protected:
  static constexpr int micro_batches = 2;
  SummedByHand() {
    const Initializer initializer = [](const RandomStream&, std::int64_t index) { return static_cast<double>(index); };
    std::vector<ParameterDeclaration> list = {declare_weight("table", {9, 13}, initializer, 0, 0)};
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      list.push_back(declare_weight(fmt::format("{}.a", layer), {17, 11}, initializer, 0, 0));
      list.push_back(declare_weight(fmt::format("{}.b", layer), {5 + layer, 7}, initializer, 0, 0));
      list.push_back(declare_vector(fmt::format("{}.theta", layer), {30}, initializer, 0));
      list.back().group.whole = true;
      for (const char* name : {"gain", "bias"})
        list.push_back(declare_vector(fmt::format("{}.{}", layer, name), {21}, initializer, 0));
      for (std::size_t i = list.size() - 5; i < list.size(); ++i) list[i].layer = layer;
    }
    Sharding sharding;
    sharding.shards = shard_count(options_.layout, mesh_);
    sharding.stage = GetParam().zero;
    sharding.smallest_bucket = 1;
    sharding.gradient_slots = options_.layout.overlaps("gradients") ? 2 : 1;
    sharding.weight_slots = options_.layout.overlaps("weights") ? 2 : 1;
    store_.emplace(list, mesh_, Precision{DType::fp64, DType::fp64}, resources_.execution(), sharding);
    sync_.emplace(*store_, mesh_, options_.layout.overlaps("gradients"), resources_.execution());
    gather_.emplace(*store_, mesh_, options_.layout.overlaps("weights"), resources_.execution());
  }
  // Adds factor x (index + 1) to the gradient; writes where nothing was added yet.
  void add_to(ParameterId id, double factor) {
    const Tensor gradient = store_->gradient(id);
    const bool first = store_->first_accumulation(id);
    for (std::int64_t i = 0; i < gradient.elements(); ++i) {
      double& value = gradient.as<double>()[i];
      value = (first ? 0.0 : value) + factor * static_cast<double>(i + 1);
    }
  }
  static double factor_of(int micro_batch) { return 100.0 * micro_batch + test_world().rank() + 1; }
  void add_vectors(std::int64_t layer, double factor) {
    for (const char* name : {"theta", "gain", "bias"}) add_to(store_->id(fmt::format("{}.{}", layer, name)), factor);
  }
  void add_matrices(std::int64_t layer, double factor) {
    for (const char* name : {"a", "b"}) add_to(store_->id(fmt::format("{}.{}", layer, name)), factor);
  }
  // The two halves layer by layer.
  void backward(int micro_batch) {
    const double factor = factor_of(micro_batch);
    add_to(store_->id("table"), factor);
    for (std::int64_t layer = 2; layer >= 0; --layer) {
      sync_->before_backward_input(layer);
      sync_->before_backward_weight(layer);
      add_vectors(layer, factor);
      add_matrices(layer, factor);
      sync_->after_backward_weight(layer);
    }
  }
  // The two halves of all micro-batches apart, as zero-bubble schedules have them.
  void backward_in_halves() {
    for (int m = 0; m < micro_batches; ++m) {
      add_to(store_->id("table"), factor_of(m));
      for (std::int64_t layer = 2; layer >= 0; --layer) {
        sync_->before_backward_input(layer);
        add_vectors(layer, factor_of(m));
      }
    }
    for (int m = 0; m < micro_batches; ++m)
      for (std::int64_t layer = 2; layer >= 0; --layer) {
        sync_->before_backward_weight(layer);
        add_matrices(layer, factor_of(m));
        sync_->after_backward_weight(layer);
      }
  }

  std::optional<ParameterStore> store_;
  std::optional<GradientSync> sync_;
  std::optional<WeightGather> gather_;
};

TEST_P(SummedByHand, OwnersHoldTheSumOverRanksAndMicroBatches) {
  for (int step = 0; step < 3; ++step) {
    sync_->begin_step(micro_batches);
    if (step == 1) backward_in_halves();
    for (int m = 0; m < micro_batches && step != 1; ++m) backward(m);
    sync_->reduce_shared();
    sync_->reduce_gradients();
    double factor = 0.0;
    for (int m = 0; m < micro_batches; ++m)
      for (int rank = 0; rank < ranks; ++rank) factor += 100.0 * m + rank + 1;
    std::int64_t elements = 0;
    for (const ParameterPiece& piece : store_->pieces(store_->flat_gradients())) {
      const std::int64_t columns = elements_of(piece.global_shape) / piece.global_shape[0];
      const std::int64_t rows = piece.memory.size(0), width = piece.memory.elements() / rows;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < width; ++c) {
          const std::int64_t index =
              (piece.offset[0] + r) * columns + (piece.offset.size() > 1 ? piece.offset[1] : 0) + c;
          const Tensor row = piece.memory.select(0, r);
          EXPECT_EQ((row.rank() == 0 ? row.as<double>()[0] : row.as<double>()[c]),
                    factor * static_cast<double>(index + 1))
              << piece.tensor;
        }
      elements += rows * width;
    }
    EXPECT_EQ(test_world().all_reduce(elements, ReduceOp::sum) * store_->sharding().shards,
              ranks * (9 * 13 + 3 * (17 * 11 + 30 + 2 * 21) + (5 + 6 + 7) * 7));
  }
}

// From stage 2 and 3 on the gradients and the weights of vectors are in parts like the matrices'.
TEST_P(SummedByHand, VectorsAreShardedLikeMatrices) {
  const auto bucket = [&](const char* name) { return store_->shard_map().place(store_->id(name)).bucket; };
  for (const char* name : {"1.a", "1.gain", "1.bias"}) {
    EXPECT_EQ(store_->gradients_in_slots(bucket(name)), GetParam().zero >= 2) << name;
    EXPECT_EQ(store_->weights_in_slots(bucket(name)), GetParam().zero >= 3) << name;
  }
  EXPECT_EQ(bucket("1.gain"), bucket("1.bias"));
  EXPECT_NE(bucket("1.gain"), bucket("1.a"));
  for (const char* name : {"table", "1.theta"}) EXPECT_FALSE(store_->gradients_in_slots(bucket(name))) << name;
}

TEST_P(SummedByHand, ALayerThatIsNotDoneIsNoticed) {
  sync_->begin_step(micro_batches + 1);
  for (int m = 0; m < micro_batches; ++m) backward(m);
  EXPECT_THROW(sync_->reduce_gradients(), InternalError);
}

TEST_P(SummedByHand, WeightsAreWholeWhereTheyAreUsed) {
  store_->initialize(1, resources_.execution());
  for (int change = 1; change <= 2; ++change) {
    gather_->wait();
    for (const Tensor& part : store_->flat_weights()) scale(resources_.execution(), part, 2.0);  // what an update does
    if (store_->sharding().stage == 3) {
      const std::size_t bucket = store_->shard_map().place(store_->id("1.a")).bucket;
      EXPECT_TRUE(store_->weights_in_slots(bucket));
      if (change == 1) {
        EXPECT_THROW((void)store_->weight(store_->id("1.a")), InternalError);
      }
    }
    gather_->weights_changed();
    gather_->begin_pass();
    const double factor = std::pow(2.0, change);
    const auto expect_weight = [&](const std::string& name) {
      const Tensor weight = store_->weight(store_->id(name));
      for (std::int64_t i = 0; i < weight.elements(); ++i)
        ASSERT_EQ(weight.as<double>()[i], factor * static_cast<double>(i)) << name << " after change " << change;
    };
    expect_weight("table");
    const auto expect_layer = [&](std::int64_t layer) {
      for (const char* name : {"a", "b", "theta", "gain", "bias"}) expect_weight(fmt::format("{}.{}", layer, name));
    };
    for (int m = 0; m < 2; ++m) {
      for (std::int64_t layer = 0; layer < 3; ++layer) {
        gather_->before_forward(layer);
        expect_layer(layer);
      }
      for (std::int64_t layer = 2; layer >= 0; --layer) {
        gather_->before_backward(layer);
        expect_layer(layer);
      }
    }
  }
}

// Each clip group is clipped by its own norm, whose elements are counted once however they are sharded.
TEST_P(SummedByHand, ClipGroupsAreClippedApart) {
  std::vector<ParameterDeclaration> list;
  for (const char* name : {"first", "second"}) {
    list.push_back(declare_weight(
        name, {50, 7}, [](const RandomStream&, std::int64_t) { return 0.0; }, 0, 0));
    list.back().group.clip_group = name;
  }
  Sharding sharding;
  sharding.shards = shard_count(options_.layout, mesh_);
  sharding.stage = std::min(GetParam().zero, 1);
  ParameterStore store(list, mesh_, {DType::fp64, DType::fp64}, resources_.execution(), sharding);
  const double values[] = {3.0, 0.01};
  for (std::size_t i = 0; i < 2; ++i)
    testing::write(store.gradient(store.id(list[i].name)), testing::Values(350, values[i]));
  OptimizerConfig config;
  config.betas = {0.0, 0.0};
  config.epsilon = 1.0;  // the update then depends on the size of the gradient
  config.weight_decay = 0.0;
  Optimizer optimizer(config, 1.0, store, mesh_, resources_.execution());
  optimizer.step(1.0, 0);
  const double norms[] = {3.0 * std::sqrt(350.0), 0.01 * std::sqrt(350.0)};
  EXPECT_NEAR(optimizer.gradient_norm(), std::hypot(norms[0], norms[1]), 1e-12);
  for (const ParameterPiece& piece : store.pieces(store.flat_weights())) {
    const std::size_t i = piece.tensor == "first" ? 0 : 1;
    const double g = values[i] * std::min(1.0, 1.0 / (norms[i] + 1e-6));
    for (const double weight : testing::read(piece.memory)) EXPECT_NEAR(weight, -g / (g + 1.0), 1e-12) << piece.tensor;
  }
}

INSTANTIATE_TEST_SUITE_P(Ways, ShardedRun, ::testing::ValuesIn(ways));
INSTANTIATE_TEST_SUITE_P(Ways, SummedByHand, ::testing::ValuesIn(ways));

TEST(ZeroGroup, MustDivideTheReplicas) {
  Mesh mesh({.data = ranks}, test_world());
  LayoutConfig layout;
  layout.zero = 2;
  layout.zero_group = "3";
  EXPECT_THROW(shard_count(layout, mesh), UserError);
  layout.zero_group = "node";  // all ranks of this test are on one
  EXPECT_EQ(shard_count(layout, mesh), ranks);
  layout.zero = 0;
  EXPECT_EQ(shard_count(layout, mesh), 1);
  EXPECT_EQ(zero_group_problem("4"), "");
  EXPECT_NE(zero_group_problem("0"), "");
  EXPECT_NE(zero_group_problem("4 ranks"), "");
}

}  // namespace
}  // namespace fulmen
