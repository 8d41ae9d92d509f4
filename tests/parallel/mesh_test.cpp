// The arithmetic of the mesh: coordinates, members of groups, communicators made once, layouts that are refused.
#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "tests/parallel/mesh_shapes.h"

namespace fulmen {
namespace {

constexpr Axis all_axes[] = {Axis::tensor, Axis::sequence, Axis::data, Axis::pipeline};

// Has a rank, a size and subgroups, and nothing else.
class NamedPlace final : public Communicator {
 public:
  NamedPlace(int rank, int size, int* subgroups = nullptr) : rank_(rank), size_(size), subgroups_(subgroups) {}
  using Communicator::all_reduce;
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  void all_reduce(const Tensor&, ReduceOp, Stream) override {}
  Pending start_all_reduce(const Tensor&, ReduceOp, Stream) override { return {}; }
  void reduce_scatter(const Tensor&, const Tensor&, ReduceOp, Stream) override {}
  Pending start_reduce_scatter(const Tensor&, const Tensor&, ReduceOp, Stream) override { return {}; }
  void all_gather(const Tensor&, const Tensor&, Stream) override {}
  Pending start_all_gather(const Tensor&, const Tensor&, Stream) override { return {}; }
  void broadcast(const Tensor&, int, Stream) override {}
  void exchange(std::span<const Transfer>, Stream) override {}
  Pending start_exchange(std::span<const Transfer>, Stream) override { return {}; }
  void barrier() override {}
  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    if (subgroups_ != nullptr) ++*subgroups_;
    const auto self = std::find(ranks.begin(), ranks.end(), rank_);
    EXPECT_NE(self, ranks.end());
    return std::make_unique<NamedPlace>(static_cast<int>(self - ranks.begin()), static_cast<int>(ranks.size()));
  }
  void abort(int exit_code) override { std::_Exit(exit_code); }

 private:
  int rank_;
  int size_;
  int* subgroups_;
};

TEST(Mesh, CoordinatesNumberTheRanksTensorFastest) {
  for (const MeshShape& shape : mesh_shapes(24)) {
    NamedPlace world(0, shape.ranks());
    const Mesh mesh(shape, world);
    int rank = 0;
    for (int p = 0; p < shape.pipeline; ++p)
      for (int d = 0; d < shape.data; ++d)
        for (int s = 0; s < shape.sequence; ++s)
          for (int t = 0; t < shape.tensor; ++t, ++rank) {
            ASSERT_EQ(mesh.coordinate_of(rank, Axis::tensor), t) << shape.describe() << " rank " << rank;
            ASSERT_EQ(mesh.coordinate_of(rank, Axis::sequence), s);
            ASSERT_EQ(mesh.coordinate_of(rank, Axis::data), d);
            ASSERT_EQ(mesh.coordinate_of(rank, Axis::pipeline), p);
          }
    ASSERT_EQ(rank, shape.ranks());
  }
}

TEST(Mesh, RankAtMovesAlongOneAxisOnly) {
  for (const MeshShape& shape : mesh_shapes(24)) {
    for (int rank = 0; rank < shape.ranks(); ++rank) {
      NamedPlace world(rank, shape.ranks());
      const Mesh mesh(shape, world);
      for (const Axis axis : all_axes) {
        ASSERT_EQ(mesh.rank_at(axis, mesh.coordinate(axis)), rank);
        for (int c = 0; c < mesh.size(axis); ++c) {
          const int other = mesh.rank_at(axis, c);
          for (const Axis each : all_axes)
            ASSERT_EQ(mesh.coordinate_of(other, each), each == axis ? c : mesh.coordinate(each));
        }
      }
    }
  }
}

TEST(Mesh, MembersShareTheOtherCoordinates) {
  for (const MeshShape& shape : mesh_shapes(18)) {
    for (const std::vector<Axis>& axes : axis_subsets()) {
      int expected = 1;
      for (const Axis axis : axes) expected *= shape.size(axis);
      std::set<std::vector<int>> groups;
      for (int rank = 0; rank < shape.ranks(); ++rank) {
        NamedPlace world(rank, shape.ranks());
        const Mesh mesh(shape, world);
        const std::vector<int> members = mesh.members(axes);
        ASSERT_EQ(members.size(), static_cast<std::size_t>(expected)) << shape.describe();
        ASSERT_TRUE(std::is_sorted(members.begin(), members.end()));
        ASSERT_TRUE(std::binary_search(members.begin(), members.end(), rank));
        for (const int member : members) {
          for (const Axis axis : all_axes) {
            if (std::find(axes.begin(), axes.end(), axis) != axes.end()) continue;
            ASSERT_EQ(mesh.coordinate_of(member, axis), mesh.coordinate(axis));
          }
        }
        groups.insert(members);
      }
      ASSERT_EQ(groups.size(), static_cast<std::size_t>(shape.ranks() / expected));  // they partition the ranks
    }
  }
}

TEST(Mesh, MakesEachCommunicatorOnce) {
  int subgroups = 0;
  NamedPlace world(7, 12, &subgroups);
  Mesh mesh({.tensor = 2, .data = 3, .pipeline = 2}, world);
  Communicator& data = mesh.along(Axis::data);
  EXPECT_EQ(data.size(), 3);
  EXPECT_EQ(data.rank(), mesh.coordinate(Axis::data));
  EXPECT_EQ(&mesh.along({Axis::data}), &data);
  EXPECT_EQ(&mesh.along({Axis::sequence, Axis::data}), &data);  // the same ranks
  EXPECT_EQ(subgroups, 1);
  EXPECT_EQ(mesh.along({Axis::tensor, Axis::pipeline}).size(), 4);
  EXPECT_EQ(&mesh.along({Axis::pipeline, Axis::tensor}), &mesh.along({Axis::tensor, Axis::pipeline}));
  EXPECT_EQ(subgroups, 2);
}

TEST(Mesh, AmongKeepsTheOrderListed) {
  NamedPlace world(4, 6);
  Mesh mesh({.tensor = 2, .pipeline = 3}, world);  // pipeline coordinate 2
  EXPECT_EQ(mesh.among(Axis::pipeline, {0, 2}).rank(), 1);
  EXPECT_EQ(mesh.among(Axis::pipeline, {2, 0}).rank(), 0);
  EXPECT_EQ(mesh.among(Axis::pipeline, {2}).size(), 1);
  EXPECT_THROW(mesh.among(Axis::pipeline, {0, 1}), InternalError);
  EXPECT_THROW(mesh.among(Axis::pipeline, {2, 3}), InternalError);
}

// Ranks (tensor, data, pipeline) of 2 x 12 x 1: expert 4 and memory 6 number neighbours along data anew, by themselves.
TEST(Mesh, AxesInsideDataNumberItsNeighbours) {
  const MeshShape shape{.tensor = 2, .data = 12, .expert = 4, .memory = 6};
  EXPECT_EQ(shape.ranks(), 24);
  EXPECT_EQ(shape.describe(),
            "data 12 x sequence 1 x tensor 2 x pipeline 1, expert 4 inside data, memory 6 inside data");
  EXPECT_EQ(axes_inside(Axis::data), (std::vector<Axis>{Axis::expert, Axis::memory}));
  NamedPlace world(2 * 7 + 1, 24);  // rank 7 along data
  Mesh mesh(shape, world);
  EXPECT_EQ(mesh.coordinate(Axis::data), 7);
  EXPECT_EQ(mesh.coordinate(Axis::expert), 3);
  EXPECT_EQ(mesh.coordinate(Axis::memory), 1);
  const auto along_data = [](std::vector<int> places) {
    for (int& place : places) place = 2 * place + 1;
    return places;
  };
  EXPECT_EQ(mesh.members({Axis::expert}), along_data({4, 5, 6, 7}));
  EXPECT_EQ(mesh.members({Axis::memory}), along_data({6, 7, 8, 9, 10, 11}));
  EXPECT_EQ(mesh.members({Axis::data}, {Axis::expert}), along_data({3, 7, 11}));
  EXPECT_EQ(mesh.members({Axis::data}, {Axis::memory}), along_data({1, 7}));
  EXPECT_EQ(mesh.members({Axis::expert, Axis::memory}), mesh.members({Axis::data}));
  EXPECT_EQ(mesh.members({Axis::tensor, Axis::expert}), (std::vector<int>{8, 9, 10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(mesh.rank_at(Axis::expert, 0), 2 * 4 + 1);
  EXPECT_EQ(mesh.along({Axis::data}, {Axis::expert}).rank(), 1);
  EXPECT_EQ(mesh.along(Axis::expert).rank(), 3);
  EXPECT_EQ(mesh.among(Axis::expert, {3, 1}).rank(), 0);
}

// The groups of every rank partition the ranks, whatever of data they span.
TEST(Mesh, GroupsOfAxesInsideDataPartitionTheRanks) {
  struct Group {
    std::vector<Axis> axes, equal;
    int size;
  };
  const MeshShape shape{.tensor = 2, .sequence = 2, .data = 6, .expert = 3, .memory = 2};
  for (const auto& [axes, equal, size] :
       {Group{{Axis::expert}, {}, 3}, Group{{Axis::data}, {Axis::expert}, 2},
        Group{{Axis::sequence, Axis::data}, {Axis::memory}, 6}, Group{{Axis::sequence, Axis::memory}, {}, 4}}) {
    std::set<std::vector<int>> groups;
    for (int rank = 0; rank < shape.ranks(); ++rank) {
      NamedPlace world(rank, shape.ranks());
      const std::vector<int> members = Mesh(shape, world).members(axes, equal);
      EXPECT_EQ(members.size(), static_cast<std::size_t>(size));
      EXPECT_TRUE(std::binary_search(members.begin(), members.end(), rank));
      groups.insert(members);
    }
    EXPECT_EQ(groups.size(), static_cast<std::size_t>(shape.ranks() / size));
  }
}

TEST(Mesh, RefusesASizeThatDoesNotFit) {
  NamedPlace world(0, 6);
  EXPECT_THROW(Mesh({.tensor = 4}, world), UserError);
  EXPECT_THROW(Mesh({.tensor = 0}, world), UserError);
  EXPECT_THROW(Mesh({.tensor = -2, .data = -3}, world), UserError);
  EXPECT_THROW(Mesh({.tensor = 65536, .data = 65536}, world), UserError);  // the product would wrap
  EXPECT_THROW(Mesh({.tensor = 2, .data = 3, .expert = 2}, world), UserError);
  EXPECT_THROW(Mesh({.data = 6, .memory = 4}, world), UserError);
  EXPECT_THROW(Mesh({.data = 6, .expert = 0}, world), UserError);
  EXPECT_NO_THROW(Mesh({.data = 6, .expert = 2, .memory = 3}, world));
  try {
    Mesh({.tensor = 2, .data = 2, .pipeline = 2}, world);
    FAIL();
  } catch (const UserError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("data 2 x sequence 1 x tensor 2 x pipeline 2"), std::string::npos) << text;
    EXPECT_NE(text.find("needs 8 ranks, this job has 6"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace fulmen
