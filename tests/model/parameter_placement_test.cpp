// The parts that every rank of a mesh holds of a family with experts, a pool and copies of heads. Each element of each
// logical tensor lies where it should, initialised from its global index. It is written to checkpoints once and counted
// once.
#include <gtest/gtest.h>

#include "tests/model/placement_family.h"
#include "tests/model/test_model.h"

namespace fulmen {
namespace {

using namespace placement_family;

struct Case {
  MeshShape shape;
  int stage = 0, shards = 1;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.shape.describe() << ", ZeRO " << c.stage << " over " << c.shards;
}

class EveryRankOfTheFamily : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override { FULMEN_CPU_ONLY("flat storage is laid out alike on every device"); }
  // Calls f(store, mesh) as each rank.
  template <class F>
  void for_each_rank(F&& f) {
    const Case& c = GetParam();
    TestExecution execution;
    for (int rank = 0; rank < c.shape.ranks(); ++rank) {
      PlaceOnly place(rank, c.shape.ranks());
      const Mesh mesh(c.shape, place);
      ParameterStore store(declare_family(c.shape.pipeline, mesh.coordinate(Axis::pipeline)), mesh,
                           {DType::fp64, DType::fp64}, execution.execution(), {c.stage, c.shards});
      store.initialize(5, execution.execution());
      f(store, mesh);
    }
  }
};

TEST_P(EveryRankOfTheFamily, HoldsEachElementInitialisedWrittenOnceCountedOnce) {
  std::map<std::string, std::vector<int>> written, counted;
  for (const auto& [name, shape] : logical_tensors())
    for (auto* times : {&written, &counted}) (*times)[name].assign(static_cast<std::size_t>(elements_of(shape)), 0);
  std::map<std::string, int> copies;  // of a shard: each of them counts
  for_each_rank([&](ParameterStore& store, const Mesh&) {
    for (std::size_t group = 0; group < store.groups().size(); ++group)
      for (const Tensor& run : store.counted_in(store.flat_gradients(), group)) {
        for (const double value : testing::read(run)) EXPECT_EQ(value, 0.0) << "counted twice";
        testing::write(run, testing::Values(static_cast<std::size_t>(run.elements()), 1.0));
      }
    for (ParameterId id = 0; id < store.size(); ++id)
      for (const LogicalTensor& tensor : store.declaration(id).tensors)
        copies[tensor.name] = store.replication_of(store.shard_map().place(id).bucket).copies;
    for (const ParameterPiece& piece : store.pieces(store.flat_gradients()))
      for_each_element(piece, [&](std::int64_t place, double value) {
        const auto i = static_cast<std::size_t>(place);
        written.at(piece.tensor)[i] += piece.owned;
        counted.at(piece.tensor)[i] += value == 1.0;
      });
    for (const ParameterPiece& piece : store.pieces(store.flat_weights())) {
      const RandomStream random(5, piece.tensor);
      for_each_element(piece, [&](std::int64_t place, double value) {
        ASSERT_EQ(value, initial_value(random, place)) << piece.tensor << " at " << place;
      });
    }
  });
  for (const auto& [name, times] : written) EXPECT_EQ(std::ranges::count(times, 1), std::ssize(times)) << name;
  for (const auto& [name, times] : counted)
    EXPECT_EQ(std::ranges::count(times, copies.at(name)), std::ssize(times)) << name;
}

// Replicas, and what they share, follow from who owns what.
TEST_P(EveryRankOfTheFamily, OwnedParametersHaveReplicasOfTheirOwn) {
  const MeshShape& shape = GetParam().shape;
  for_each_rank([&](ParameterStore& store, const Mesh& mesh) {
    for (ParameterId id = 0; id < store.size(); ++id) {
      const ParameterDeclaration& declaration = store.declaration(id);
      SCOPED_TRACE(declaration.name);
      const bool expert = declaration.items > 0, pool = declaration.name == "pool";
      const Replication& replication = store.replication_of(store.shard_map().place(id).bucket);
      EXPECT_EQ(replication.owned_along, expert ? std::vector<Axis>{Axis::expert}
                                         : pool ? std::vector<Axis>{Axis::memory}
                                                : std::vector<Axis>{});
      const int owners = expert ? shape.expert : pool ? shape.memory : 1;
      EXPECT_EQ(replication.shards * replication.copies, shape.data * shape.sequence / owners);
      if (!expert && !pool) {
        EXPECT_EQ(replication.shards, GetParam().shards);
      }
      const LocalLayout& layout = store.layout(id);
      if (expert) {
        const std::int64_t items = declaration.items / shape.expert, first = mesh.coordinate(Axis::expert) * items;
        EXPECT_EQ(layout.items, (IndexRange{first, first + items}));
        EXPECT_EQ(layout.rows, items * layout.item_rows());
      }
      if (pool) {
        EXPECT_EQ(layout.columns, 8 / shape.memory);
        EXPECT_EQ(layout.segments.front().indices.begin, mesh.coordinate(Axis::memory) * layout.columns);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Layouts, EveryRankOfTheFamily,
                         ::testing::Values(Case{{}}, Case{{.tensor = 2}}, Case{{.tensor = 4, .data = 2, .expert = 2}},
                                           Case{{.tensor = 8}}, Case{{.data = 4, .expert = 4, .memory = 2}, 1, 4},
                                           Case{{.tensor = 2, .data = 4, .expert = 2, .memory = 4}, 3, 2},
                                           Case{{.sequence = 3, .data = 4, .expert = 2, .memory = 2}, 2, 12},
                                           Case{{.sequence = 3, .data = 4, .expert = 2}, 3, 3},
                                           Case{{.tensor = 4, .data = 2, .pipeline = 2, .expert = 2}, 3, 2},
                                           Case{{.data = 8, .expert = 4, .memory = 8}, 1, 8}));

}  // namespace
}  // namespace fulmen
