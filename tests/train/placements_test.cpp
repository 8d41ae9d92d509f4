// A family of declarations with all that a placement can say (experts, a pool, copies of key heads, norms' gains) on
// four ranks. Gradients made from global indices are summed, clipped and applied as on one rank, in every ZeRO stage. A
// checkpoint of each layout goes on in the next.
#include <gtest/gtest.h>

#include <cmath>
#include <iterator>
#include <map>
#include <numeric>

#include "checkpoint/parameters.h"
#include "kernels/elementwise.h"
#include "tests/framework/temporary_folder.h"
#include "tests/kernels/kernel_test.h"
#include "tests/model/placement_family.h"
#include "tests/mpi_main.h"
#include "train/gradient_sync.h"
#include "train/optimizer.h"
#include "train/weight_gather.h"

namespace fulmen {
namespace {

using namespace placement_family;

constexpr int micro_batches = 2, steps = 4, saved_after = 2;
constexpr double tolerance = 1e-10;

// A rank's share of the whole: the shares of `count` ranks are unequal and sum to 1.
double share(int index, int count) { return (index + 1.0) / (count * (count + 1) / 2.0); }

double gradient_value(const std::string& tensor, std::int64_t index, int step) {
  const double factor = tensor.find("pool") == std::string::npos ? 0.3 : 0.01;  // one group is clipped, one is not
  return factor *
         RandomStream(static_cast<std::uint64_t>(100 + step), tensor).normal(static_cast<std::uint64_t>(index));
}

struct Case {
  MeshShape shape;
  int zero = 0;
  const char* group = "all";
  bool overlap = false, split_tokens = false;
  std::int64_t smallest_bucket = 1 << 20;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.shape.describe() << ", zero " << c.zero << " over " << c.group << (c.overlap ? ", overlap" : "")
       << (c.split_tokens ? ", split tokens" : "") << ", buckets of " << c.smallest_bucket;
}

OptimizerConfig optimizer_config() {
  OptimizerConfig config;
  config.epsilon = 1e-2;
  return config;
}

using Values = std::map<std::string, std::vector<double>>;

// The family on some ranks.
class Training {
 public:
  Training(const Case& c, Communicator& ranks)
      : case_(c),
        resources_(Device::cpu()),
        mesh_(c.shape, ranks),
        stage_(mesh_.coordinate(Axis::pipeline)),
        store_(declare_family(c.shape.pipeline, stage_), mesh_, {DType::fp64, DType::fp64}, execution(), sharding()),
        sync_(store_, mesh_, c.overlap, execution(), c.split_tokens),
        gather_(store_, mesh_, c.overlap, execution()),
        optimizer_(optimizer_config(), 1.0, store_, mesh_, execution()) {
    sync_.connect();
    store_.initialize(7, execution(), optimizer_.master().flat());
    gather_.weights_changed();
  }

  ParameterStore& parameters() { return store_; }
  Optimizer& optimizer() { return optimizer_; }

  // The gradient of a step.
  void backward(int step) {
    sync_.begin_step(micro_batches);
    for (int m = 0; m < micro_batches; ++m) {
      for (ParameterId id = 0; id < store_.size(); ++id)
        if (store_.declaration(id).layer < 0) add(id, step, m);
      for (std::int64_t layer = layers; layer-- > 0;) {
        if (store_.shard_map().buckets_of(layer).empty()) continue;
        sync_.before_backward_input(layer);
        sync_.before_backward_weight(layer);
        for (ParameterId id = 0; id < store_.size(); ++id)
          if (store_.declaration(id).layer == layer) add(id, step, m);
        sync_.after_backward_weight(layer);
      }
    }
    sync_.reduce_shared();
    sync_.reduce_gradients();
  }
  void update(int step) {
    gather_.wait();
    optimizer_.step(1e-2, step);
    gather_.weights_changed();
  }

  void save(const std::filesystem::path& folder) {
    std::vector<TensorPiece> pieces;
    for (const auto& [prefix, flat] : saved())
      std::ranges::move(pieces_to_save(store_, flat, prefix, execution()), std::back_inserter(pieces));
    save_checkpoint(folder, {}, pieces, mesh_.world(), {.exact_folder = true, .extra_files = {}});
  }
  void load(const std::filesystem::path& folder) {
    gather_.wait();
    const CheckpointReader reader(folder);
    for (const auto& [prefix, flat] : saved()) load_pieces(reader, store_, flat, prefix, execution());
    gather_.weights_changed();
  }

  // Calls f for the pieces of every weight as layers see it.
  template <class F>
  void for_each_whole_weight(F&& f) {
    gather_.begin_pass();
    const auto look = [&](std::int64_t layer) {
      for (ParameterId id = 0; id < store_.size(); ++id)
        if (store_.declaration(id).layer == layer)
          for (const ParameterPiece& piece : whole_pieces(id, store_.weight(id))) f(piece);
    };
    look(-1);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      gather_.before_forward(layer);
      look(layer);
    }
  }

 private:
  const Execution& execution() { return execution_ = resources_.execution(); }
  Sharding sharding() {
    LayoutConfig layout;
    layout.zero = case_.zero;
    layout.zero_group = case_.group;
    Sharding sharding;
    sharding.shards = shard_count(layout, mesh_);
    sharding.stage = sharding.shards > 1 ? case_.zero : 0;
    sharding.smallest_bucket = case_.smallest_bucket;
    sharding.gradient_slots = sharding.weight_slots = case_.overlap ? 2 : 1;
    return sharding;
  }
  std::vector<std::pair<std::string, FlatParts>> saved() {
    return {{"parameters/", optimizer_.master().flat()},
            {"optimizer/exp_avg/", optimizer_.exp_avg()},
            {"optimizer/exp_avg_sq/", optimizer_.exp_avg_sq()}};
  }
  std::vector<ParameterPiece> whole_pieces(ParameterId id, const Tensor& matrix) const {
    return pieces_of(store_.declaration(id), store_.layout(id), {0, matrix.elements()}, matrix.flatten());
  }
  // This rank's share of a tensor's gradient, over all who hold a part of the sum.
  double share_of(ParameterId id, const std::string& tensor, int micro_batch) const {
    const ParameterDeclaration& declaration = store_.declaration(id);
    const std::vector<Axis> owned = declaration.owned_along();
    double factor = share(micro_batch, micro_batches) *
                    share(ShardGroups::replica(mesh_, owned), ShardGroups::replicas(mesh_, owned));
    const AxisPlacement tensor_placement = declaration.along(Axis::tensor);
    const int tensor_rank = mesh_.coordinate(Axis::tensor);
    if (tensor_placement == AxisPlacement::replicated_partial ||
        (tensor_placement == AxisPlacement::with_tokens && case_.split_tokens))
      factor *= share(tensor_rank, mesh_.size(Axis::tensor));
    for (const LocalSegment& segment : store_.layout(id).segments)
      if (declaration.segments[segment.segment].tensor == tensor && segment.holders.size() > 1)
        factor *= share(tensor_rank - segment.holders.front(), static_cast<int>(segment.holders.size()));
    if (declaration.along(Axis::pipeline) == AxisPlacement::shared) factor *= share(stage_, mesh_.size(Axis::pipeline));
    return factor;
  }
  void add(ParameterId id, int step, int micro_batch) {
    const Tensor gradient = store_.gradient(id);
    if (store_.first_accumulation(id)) fill_zero(execution_, gradient);
    for (const ParameterPiece& piece : whole_pieces(id, gradient)) {
      const double factor = share_of(id, piece.tensor, micro_batch);
      for_each_element(piece, [&](std::int64_t place, double& value) {
        value += factor * gradient_value(piece.tensor, place, step);
      });
    }
  }

  Case case_;
  ExecutionResources resources_;
  Execution execution_;
  Mesh mesh_;
  int stage_;
  ParameterStore store_;
  GradientSync sync_;
  WeightGather gather_;
  Optimizer optimizer_;
};

double norm_of(bool pool, int step) {
  double squares = 0.0;
  for (const auto& [name, shape] : logical_tensors())
    for (std::int64_t i = 0; i < elements_of(shape) && (name == "pool") == pool; ++i)
      squares += std::pow(gradient_value(name, i, step), 2);
  return std::sqrt(squares);
}

Values values_of(const std::vector<ParameterPiece>& pieces) {
  Values values;
  for (const ParameterPiece& piece : pieces) {
    values[piece.tensor].resize(static_cast<std::size_t>(elements_of(piece.global_shape)));
    for_each_element(piece, [&](std::int64_t place, double value) {
      values[piece.tensor][static_cast<std::size_t>(place)] = value;
    });
  }
  return values;
}

// One rank's weights after each step.
const std::vector<Values>& reference() {
  static const std::vector<Values> weights = [] {
    const auto self = make_self_communicator();
    Training training({}, *self);
    std::vector<Values> list;
    for (int step = 0; step < steps; ++step) {
      training.backward(step);
      training.update(step);
      list.push_back(values_of(training.parameters().pieces(training.parameters().flat_weights())));
    }
    return list;
  }();
  return weights;
}

void expect_near(const ParameterPiece& piece, const std::function<double(std::int64_t place)>& expected) {
  double worst = 0.0;
  for_each_element(piece, [&](std::int64_t place, double value) {
    const double difference = std::abs(value - expected(place));
    worst = std::isfinite(difference) ? std::max(worst, difference) : INFINITY;
  });
  EXPECT_LE(worst, tolerance) << piece.tensor;
}

class Placements : public ::testing::TestWithParam<Case> {
 public:
  static void SetUpTestSuite() {
    if (test_world().rank() == 0) temporary_.emplace();
    folder_ = test_world().broadcast_text(temporary_ ? temporary_->path().string() : "", 0);
  }
  static void TearDownTestSuite() {
    test_world().barrier();
    temporary_.reset();
  }

 protected:
  void expect_weights(Training& training, int step) {
    const Values& expected = reference()[static_cast<std::size_t>(step)];
    const auto compare = [&](const ParameterPiece& piece) {
      const std::vector<double>& whole = expected.at(piece.tensor);
      expect_near(piece, [&](std::int64_t place) { return whole[static_cast<std::size_t>(place)]; });
    };
    for (const ParameterPiece& piece : training.parameters().pieces(training.parameters().flat_weights()))
      compare(piece);
    training.for_each_whole_weight(compare);
  }

  inline static std::optional<testing_support::TemporaryFolder> temporary_;
  inline static std::filesystem::path folder_;
  inline static std::filesystem::path previous_;
  inline static int number_ = 0;
};

TEST_P(Placements, StepsNormsAndCheckpointsEqualOneRanks) {
  Training training(GetParam(), test_world());
  const std::filesystem::path saved = folder_ / fmt::format("checkpoint-{}", number_++);
  for (int step = 0; step < steps; ++step) {
    SCOPED_TRACE(fmt::format("step {}", step));
    training.backward(step);
    const ParameterStore& parameters = training.parameters();
    for (const ParameterPiece& piece : parameters.pieces(parameters.flat_gradients()))
      expect_near(piece, [&](std::int64_t place) { return gradient_value(piece.tensor, place, step); });
    const double norm = norm_of(false, step), pool_norm = norm_of(true, step);
    EXPECT_GT(norm, 1.0);
    EXPECT_LT(pool_norm, 1.0);
    EXPECT_NEAR(training.optimizer().compute_gradient_norm(), std::hypot(norm, pool_norm), tolerance * norm);
    training.update(step);
    EXPECT_NEAR(training.optimizer().gradient_norm("default"), norm, tolerance * norm);
    EXPECT_NEAR(training.optimizer().gradient_norm("pool"), pool_norm, tolerance * pool_norm);
    EXPECT_NEAR(training.optimizer().gradient_norm(), std::hypot(norm, pool_norm), tolerance * norm);
    expect_weights(training, step);
    if (step + 1 == saved_after) training.save(saved);
  }
  if (!previous_.empty()) {
    training.load(previous_);
    expect_weights(training, saved_after - 1);
    for (int step = saved_after; step < steps; ++step) {
      training.backward(step);
      training.update(step);
      expect_weights(training, step);
    }
  }
  previous_ = saved;
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, Placements,
    ::testing::Values(Case{{.data = 4}}, Case{{.data = 4, .expert = 2}, 1},
                      Case{{.data = 4, .expert = 4, .memory = 2}, 2, "all", true},
                      Case{{.data = 4, .expert = 2, .memory = 2}, 3, "2", false, false, 1},
                      Case{{.sequence = 2, .data = 2, .expert = 2}, 3, "all", true}, Case{{.tensor = 4}},
                      Case{{.tensor = 4}, 0, "all", true, true, 1},
                      Case{{.tensor = 2, .data = 2, .expert = 2, .memory = 2}, 3, "all", true, true},
                      Case{{.tensor = 2, .data = 2, .expert = 2}, 2, "all", false, true},
                      Case{{.data = 2, .pipeline = 2, .expert = 2, .memory = 2}, 1, "all", true},
                      Case{{.tensor = 2, .pipeline = 2}, 0, "all", false, true, 1},
                      Case{{.sequence = 2, .data = 2, .memory = 2}, 2, "2", true}, Case{{.data = 4}, 3, "all", true}));

// Vectors that are partial over tensor lie together, so that a bucket's take one call, whether tokens are split or not.
TEST(PlacementOrder, PartialVectorsAreNeighbours) {
  Mesh mesh({.tensor = 4}, test_world());
  ExecutionResources resources(Device::cpu());
  const ParameterStore store(declare_family(1, 0), mesh, {DType::fp64, DType::fp64}, resources.execution());
  std::vector<std::string> names;
  const std::size_t bucket = store.shard_map().place(store.id("0.gain")).bucket;
  for (const ParameterId id : store.shard_map().buckets()[bucket].parameters)
    names.push_back(store.declaration(id).name);
  EXPECT_EQ(names, (std::vector<std::string>{"1.bias", "0.bias", "1.gain", "0.gain", "1.decay", "1.convolution",
                                             "0.decay", "0.convolution"}));
}

// Counts that do not fit are refused, each with its key.
TEST(PlacementErrors, NameTheKey) {
  struct Wrong {
    MeshShape shape;
    ParameterDeclaration declaration;
    const char *key, *what;
  };
  ParameterDeclaration keys = declare_projection("");
  for (std::size_t s : {1, 2}) keys.segments[s].extent = 9, keys.segments[s].units = 3;
  keys.tensors[1].shape = keys.tensors[2].shape = {9, 12};
  for (const Wrong& wrong : {Wrong{{.tensor = 4}, keys, "parallel.tensor", "neither number divides the other"},
                             Wrong{{.data = 4, .expert = 4},
                                   declare_stack("up", {6, 8, 4}, initial_value, 0, 8, Axis::expert),
                                   "parallel.expert",
                                   "4 ranks do not divide the 6 items of up"},
                             Wrong{{.data = 4, .memory = 4},
                                   declare_pool("pool", {6, 10}, initial_value, 1, Axis::memory),
                                   "parallel.memory",
                                   "4 ranks do not divide the 10 columns of pool"}}) {
    Mesh mesh(wrong.shape, test_world());
    try {
      (void)local_layout(wrong.declaration, mesh);
      FAIL() << wrong.key;
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find(wrong.key), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(wrong.what), std::string::npos) << error.what();
    }
  }
}

// As many ranks hold a shard of an owned parameter as of the default's shard group hold equal copies.
TEST(OwnedShards, StayAmongTheNeighboursThatShard) {
  struct Wanted {
    MeshShape shape;
    int shards, owned;
  };
  for (const auto& [shape, shards, owned] :
       {Wanted{{.data = 4, .expert = 2}, 4, 2}, Wanted{{.data = 4, .expert = 2}, 2, 1},
        Wanted{{.data = 4, .expert = 4}, 4, 1}, Wanted{{.sequence = 2, .data = 2, .expert = 2}, 4, 2},
        Wanted{{.sequence = 2, .data = 2, .expert = 2}, 2, 2}, Wanted{{.sequence = 4, .data = 1}, 2, 2}}) {
    Mesh mesh(shape, test_world());
    EXPECT_EQ(shard_count(mesh, shards, {Axis::expert}), owned) << shape.describe();
    const ShardGroups all(mesh, shards), groups(mesh, owned, {Axis::expert});
    EXPECT_EQ(groups.shards().size(), owned);
    EXPECT_EQ(groups.copies().size() * owned, ShardGroups::replicas(mesh, {Axis::expert}));
    // Whoever holds another shard of an owned parameter holds another shard of the others, too.
    const double own = all.shards().rank();
    const double least = groups.shards().all_reduce(own, ReduceOp::min),
                 most = groups.shards().all_reduce(own, ReduceOp::max);
    EXPECT_EQ(most > least, owned > 1) << shape.describe();
  }
}

}  // namespace
}  // namespace fulmen
