// The flat storage of parameters on every rank of a mesh. Each element of each logical tensor lies where it should, is
// written to checkpoints once and counted once.
#include "model/parameter_store.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "tests/model/test_model.h"

namespace fulmen {
namespace {

// Six heads over 1, 2, 3 or 6 ranks; the inner width and the vocabulary are divided by none of them.
TransnormerConfig six_heads(const std::string& variant) {
  TransnormerConfig config = small_config(variant, {0, 2});
  config.layers = 3;
  config.hidden = 24;
  config.heads = 6;
  config.glu = 11;
  config.vocabulary = 37;
  return config;
}

std::map<std::string, Shape> logical_tensors(const TransnormerConfig& config) {
  std::map<std::string, Shape> shapes;
  for (const ParameterDeclaration& declaration : declare_stage(config, whole_model(config), 1))
    for (const LogicalTensor& tensor : declaration.tensors) shapes[tensor.name] = tensor.shape;
  return shapes;
}

// Calls f(global index in the logical tensor, pointer offset in piece.memory) for every element.
template <class F>
void for_each_global_index(const ParameterPiece& piece, F&& f) {
  const Shape local = piece.memory.shape();
  ASSERT_EQ(local.size(), piece.global_shape.size()) << piece.tensor;
  std::vector<std::int64_t> at(local.size(), 0);
  testing::for_each_offset(piece.memory, [&](std::int64_t offset) {
    std::int64_t global = 0;
    for (std::size_t d = 0; d < local.size(); ++d) global = global * piece.global_shape[d] + piece.offset[d] + at[d];
    f(global, offset);
    for (std::size_t d = local.size(); d-- > 0 && ++at[d] == local[d];) at[d] = 0;
  });
}

// How often each element of each logical tensor was met.
class Coverage {
 public:
  explicit Coverage(const TransnormerConfig& config) {
    for (const auto& [name, shape] : logical_tensors(config))
      counts_[name].assign(static_cast<std::size_t>(elements_of(shape)), 0);
  }
  void meet(const std::string& tensor, std::int64_t index) { ++counts_.at(tensor).at(static_cast<std::size_t>(index)); }
  void expect(const std::function<int(const std::string& tensor)>& times, const std::string& what) const {
    for (const auto& [name, counts] : counts_) {
      const auto wrong = std::count_if(counts.begin(), counts.end(), [&](int n) { return n != times(name); });
      EXPECT_EQ(wrong, 0) << what << ": " << wrong << " elements of " << name << " not " << times(name) << " times";
    }
  }

 private:
  std::map<std::string, std::vector<int>> counts_;
};

struct Layout {
  const char* variant;
  MeshShape shape;
};

void PrintTo(const Layout& layout, std::ostream* out) { *out << layout.variant << " on " << layout.shape.describe(); }

class EveryRank : public ::testing::TestWithParam<Layout> {
 protected:
  EveryRank() {
    const std::vector<StageRange> stages = split_stages(config.layers, shape.pipeline, {});
    for (int rank = 0; rank < shape.ranks(); ++rank) {
      const int stage = rank / (shape.tensor * shape.sequence * shape.data);
      ranks.push_back(
          std::make_unique<PlacedParameters>(config, stages[static_cast<std::size_t>(stage)], shape, rank, precision));
    }
  }
  void SetUp() override { FULMEN_CPU_ONLY("flat storage is laid out alike on every device"); }
  const TransnormerConfig config = six_heads(GetParam().variant);
  const MeshShape shape = GetParam().shape;
  const Precision precision{DType::fp32, DType::fp32};
  std::vector<std::unique_ptr<PlacedParameters>> ranks;
};

bool is_embedding(const std::string& tensor) { return tensor == tied_embedding_name; }
bool is_replicated_over_tensor(const std::string& tensor) { return tensor.find("output_gate.0") != std::string::npos; }

TEST_P(EveryRank, PiecesCoverEveryLogicalTensor) {
  Coverage held(config), owned(config);
  for (const auto& rank : ranks)
    for (const ParameterPiece& piece : rank->store.pieces(rank->store.flat_weights())) {
      ASSERT_EQ(piece.global_shape, logical_tensors(config).at(piece.tensor));
      for_each_global_index(piece, [&](std::int64_t global, std::int64_t) {
        held.meet(piece.tensor, global);
        if (piece.owned) owned.meet(piece.tensor, global);
      });
    }
  const int replicas = shape.data * shape.sequence;
  held.expect(
      [&](const std::string& tensor) {
        const int stages = is_embedding(tensor) && shape.pipeline > 1 ? 2 : 1;
        return replicas * stages * (is_replicated_over_tensor(tensor) ? shape.tensor : 1);
      },
      "held");
  owned.expect([](const std::string&) { return 1; }, "written to checkpoints");
}

TEST_P(EveryRank, CountedRangesHoldEachElementOncePerReplica) {
  Coverage counted(config);
  for (const auto& rank : ranks) {
    const ParameterStore& store = rank->store;
    // Mark the counted ranges in the gradients, then see which logical elements they hold.
    for (std::size_t group = 0; group < store.groups().size(); ++group)
      for (const Tensor& run : store.counted_in(store.flat_gradients(), group)) {
        EXPECT_GT(run.elements(), 0);
        for (const double value : testing::read(run)) EXPECT_EQ(value, 0.0) << "counted twice";
        testing::write(run, testing::Values(static_cast<std::size_t>(run.elements()), 1.0));
      }
    for (const ParameterPiece& piece : store.pieces(store.flat_gradients()))
      for_each_global_index(piece, [&](std::int64_t global, std::int64_t offset) {
        dispatch_fp32_fp64(piece.memory.dtype(), [&]<class T>(T) {
          if (piece.memory.as<T>()[offset] == T(1)) counted.meet(piece.tensor, global);
        });
      });
  }
  counted.expect([&](const std::string&) { return shape.data * shape.sequence; }, "counted");
}

TEST_P(EveryRank, PiecesDoNotOverlapAndLeaveOutOnlyPadding) {
  for (const auto& rank : ranks) {
    const ParameterStore& store = rank->store;
    std::int64_t in_pieces = 0;
    for (const ParameterPiece& piece : store.pieces(store.flat_weights())) {
      in_pieces += piece.memory.elements();
      for_each_global_index(piece, [&](std::int64_t, std::int64_t offset) {
        dispatch_fp32_fp64(piece.memory.dtype(), [&]<class T>(T) { piece.memory.as<T>()[offset] += T(1); });
      });
    }
    std::int64_t met = 0, elsewhere = 0;
    for (const ParameterGroup& group : store.groups())
      for (const double value : testing::read(group.weights)) {
        EXPECT_TRUE(value == 0.0 || value == 1.0) << "an element is in " << value << " pieces";
        (value == 1.0 ? met : elsewhere) += 1;
      }
    EXPECT_EQ(met, in_pieces);
    std::int64_t padding = 0;
    for (ParameterId id = 0; id < store.size(); ++id) {
      const LocalLayout& layout = store.layout(id);
      const std::int64_t other = store.declaration(id).dimension == 0 ? layout.columns : layout.rows;
      const std::int64_t elements = layout.rows * layout.columns;
      padding += (64 - elements % 64) % 64 + elements;
      for (const LocalSegment& segment : layout.segments) padding -= segment.indices.size() * other;
    }
    EXPECT_EQ(elsewhere, padding);
  }
}

// Where each rank's heads lie in the fused projection, and which rows and columns of the mixers belong together.
TEST_P(EveryRank, FusedWeightsHoldTheRowsOfTheirHeads) {
  const bool low_rank = config.low_rank_gate();
  const std::string projection = fmt::format("model.layers.1.token_mixer.{}_proj.weight", low_rank ? "qkv" : "qkvu");
  for (const auto& rank : ranks) {
    const ParameterStore& store = rank->store;
    const std::vector<StageRange> stages = split_stages(config.layers, shape.pipeline, {});
    const StageRange& stage = stages[static_cast<std::size_t>(rank->mesh().coordinate(Axis::pipeline))];
    if (stage.first_layer > 1 || stage.end_layer <= 1) continue;
    const auto mark = [&](const std::string& tensor) {  // every element of a logical tensor = its global index + 1
      for (const ParameterPiece& piece : store.pieces(store.flat_weights())) {
        if (piece.tensor != tensor) continue;
        for_each_global_index(piece, [&](std::int64_t global, std::int64_t offset) {
          piece.memory.as<float>()[offset] = static_cast<float>(global + 1);
        });
      }
    };
    mark(projection);
    const int parts = low_rank ? 3 : 4;
    const std::int64_t local = config.hidden / shape.tensor;
    const std::int64_t first = rank->mesh().coordinate(Axis::tensor) * local;
    const Tensor matrix = store.weight(store.id(projection));
    ASSERT_EQ(matrix.shape(), (Shape{parts * local, config.hidden}));
    for (int part = 0; part < parts; ++part)
      for (std::int64_t row = 0; row < local; ++row) {
        const std::int64_t global_row = part * config.hidden + first + row;
        EXPECT_EQ(matrix.as<float>()[(part * local + row) * config.hidden],
                  static_cast<float>(global_row * config.hidden + 1));
      }

    const std::string mixer = "model.layers.1.channel_mixer.";
    for (const char* name : {"l1.weight", "l2.weight", "l3.weight"}) mark(mixer + name);
    const IndexRange inner = partition(config.glu, shape.tensor, rank->mesh().coordinate(Axis::tensor));
    const Tensor expand = store.weight(store.id(mixer + "l1_l2")),
                 contract = store.weight(store.id(mixer + "l3.weight"));
    ASSERT_EQ(expand.shape(), (Shape{2 * inner.size(), config.hidden}));
    ASSERT_EQ(contract.shape(), (Shape{config.hidden, inner.size()}));
    for (std::int64_t i = 0; i < inner.size(); ++i) {
      const auto expected = static_cast<float>((inner.begin + i) * config.hidden + 1);
      EXPECT_EQ(expand.as<float>()[i * config.hidden], expected);
      EXPECT_EQ(expand.as<float>()[(inner.size() + i) * config.hidden], expected);
      EXPECT_EQ(contract.as<float>()[inner.size() + i],
                static_cast<float>(config.glu + inner.begin + i + 1));  // row 1
    }
  }
}

TEST_P(EveryRank, ThetaHasAGroupOfItsOwn) {
  for (const auto& rank : ranks) {
    const ParameterStore& store = rank->store;
    for (const ParameterGroup& group : store.groups()) {
      EXPECT_EQ(group.elements % 64, 0);
      EXPECT_EQ(group.weights.view().elements(), group.elements);
      EXPECT_EQ(group.gradients.view().elements(), group.elements);
      const bool theta = group.key.narrowest == DType::fp64;
      EXPECT_EQ(group.weights.view().dtype(), theta ? DType::fp64 : DType::fp32);
      EXPECT_EQ(group.gradients.view().dtype(), theta ? DType::fp64 : DType::fp32);
      EXPECT_EQ(group.key.weight_decay, !theta);
      EXPECT_EQ(group.key.gradient, theta ? GradientForm::sum : GradientForm::product);
    }
    for (ParameterId id = 0; id < store.size(); ++id)
      EXPECT_EQ(store.declaration(id).group.narrowest == DType::fp64,
                store.declaration(id).name.ends_with("lrpe.theta"));
    EXPECT_LE(store.groups().size(), 2u);
  }
}

TEST_P(EveryRank, PlacementsSayWhatIsSplitAndWhatIsSummed) {
  for (const auto& rank : ranks)
    for (ParameterId id = 0; id < rank->store.size(); ++id) {
      const ParameterDeclaration& declaration = rank->store.declaration(id);
      SCOPED_TRACE(declaration.name);
      const bool tied = is_embedding(declaration.name) && shape.pipeline > 1;
      EXPECT_EQ(declaration.along(Axis::tensor),
                is_replicated_over_tensor(declaration.name) ? AxisPlacement::replicated_partial : AxisPlacement::split);
      EXPECT_EQ(declaration.along(Axis::sequence), AxisPlacement::replicated_partial);
      EXPECT_EQ(declaration.along(Axis::data), AxisPlacement::replicated_partial);
      EXPECT_EQ(declaration.along(Axis::pipeline), tied ? AxisPlacement::shared : AxisPlacement::owned);
      EXPECT_EQ(declaration.shared_stages, tied ? (std::vector<int>{0, shape.pipeline - 1}) : std::vector<int>{});
    }
}

INSTANTIATE_TEST_SUITE_P(Layouts, EveryRank,
                         ::testing::Values(Layout{"tnl1", {}}, Layout{"tnl1", {.tensor = 2}},
                                           Layout{"tnl1", {.tensor = 3}}, Layout{"tnl3", {.tensor = 3}},
                                           Layout{"tnl3", {.tensor = 6}}, Layout{"tnl1", {.data = 3}},
                                           Layout{"tnl3", {.tensor = 2, .sequence = 2, .data = 2}},
                                           Layout{"tnl3", {.tensor = 3, .data = 2, .pipeline = 2}},
                                           Layout{"tnl1", {.tensor = 2, .pipeline = 3}}),
                         [](const auto& info) {
                           const MeshShape& s = info.param.shape;
                           return fmt::format("{}_tensor{}_sequence{}_data{}_pipeline{}", info.param.variant, s.tensor,
                                              s.sequence, s.data, s.pipeline);
                         });

// Parts of buckets, whose bounds fall anywhere within rows, still make every logical tensor once, with its own values.
TEST(ShardedStore, PiecesOfAllShardsMakeEveryTensorOnce) {
  FULMEN_CPU_ONLY("flat storage is laid out alike on every device");
  struct Case {
    const char* variant;
    MeshShape shape;
    int stage, shards;
  };
  for (const auto& [variant, shape, stage, shards] :
       {Case{"tnl3", {.tensor = 2, .data = 6}, 1, 2}, Case{"tnl3", {.tensor = 3, .data = 3}, 3, 3},
        Case{"tnl1", {.data = 6}, 3, 6}, Case{"tnl1", {.tensor = 2, .data = 2, .pipeline = 2}, 2, 2}}) {
    SCOPED_TRACE(fmt::format("{}, ZeRO {} over {}", variant, stage, shards));
    const TransnormerConfig config = six_heads(variant);
    const std::vector<StageRange> stages = split_stages(config.layers, shape.pipeline, {});
    Coverage held(config), owned(config), counted(config);
    for (int rank = 0; rank < shape.ranks(); ++rank) {
      const StageRange& range = stages[static_cast<std::size_t>(rank / (shape.tensor * shape.data))];
      PlacedParameters placed(config, range, shape, rank, {DType::fp64, DType::fp64}, {stage, shards});
      placed.initialize(5);
      const ParameterStore& store = placed.store;
      for (std::size_t group = 0; group < store.groups().size(); ++group)
        for (const Tensor& run : store.counted_in(store.flat_gradients(), group))
          testing::write(run, testing::Values(static_cast<std::size_t>(run.elements()), 1.0));
      const std::vector<ParameterPiece> weights = store.pieces(store.flat_weights());
      const std::vector<ParameterPiece> gradients = store.pieces(store.flat_gradients());
      for (std::size_t i = 0; i < weights.size(); ++i) {
        const RandomStream random(5, weights[i].tensor);
        const bool drawn = weights[i].tensor.find("theta") == std::string::npos;
        for_each_global_index(weights[i], [&](std::int64_t global, std::int64_t offset) {
          held.meet(weights[i].tensor, global);
          if (weights[i].owned) owned.meet(weights[i].tensor, global);
          if (gradients[i].memory.as<double>()[offset] == 1.0) counted.meet(weights[i].tensor, global);
          if (!drawn) return;
          ASSERT_EQ(weights[i].memory.as<double>()[offset],
                    config.initializer_std * random.normal(static_cast<std::uint64_t>(global)));
        });
      }
    }
    const int copies = shape.data / shards;
    held.expect(
        [&](const std::string& tensor) {
          const int stages_of_it = is_embedding(tensor) ? std::min(shape.pipeline, 2) : 1;
          return copies * stages_of_it * (is_replicated_over_tensor(tensor) ? shape.tensor : 1);
        },
        "held");
    owned.expect([](const std::string&) { return 1; }, "written to checkpoints");
    counted.expect([&](const std::string&) { return copies; }, "counted");
  }
}

TEST(ParameterStore, PadsAVocabularyThatTensorRanksDoNotDivide) {
  TransnormerConfig config = six_heads("tnl1");
  config.vocabulary = 4;  // over three ranks: two rows, two rows, none
  const std::vector<IndexRange> expected = {{0, 2}, {2, 4}, {4, 4}};
  for (int rank = 0; rank < 3; ++rank) {
    const PlacedParameters parameters(config, whole_model(config), {.tensor = 3}, rank, {});
    const LocalLayout& layout = parameters.store.layout(parameters.store.id(tied_embedding_name));
    EXPECT_EQ(layout.rows, 2);
    ASSERT_EQ(layout.segments.size(), 1u);
    EXPECT_EQ(layout.segments[0].indices, expected[static_cast<std::size_t>(rank)]);
  }
}

TEST(ParameterStore, AnUnknownNameIsADefect) {
  const TransnormerConfig config = six_heads("tnl1");
  const PlacedParameters parameters(config, whole_model(config), {}, 0, {});
  EXPECT_THROW(parameters.store.id("model.layers.9.out_proj.weight"), InternalError);
}

}  // namespace
}  // namespace fulmen
