// The mesh's communicators over MPI: every shape of at most 8 ranks, every subset of its axes.
#include <gtest/gtest.h>

#include "tests/parallel/host_tensor.h"
#include "tests/parallel/mesh_shapes.h"
#include "tests/parallel/rank_groups.h"

namespace fulmen {
namespace {

std::vector<int> world_ranks_of(Communicator& group, int own_rank) {
  std::vector<std::int32_t> own = {own_rank};
  auto members = poisoned<std::int32_t>(group.size());
  group.all_gather(tensor_of(own), tensor_of(members), {});
  return members;
}

TEST(MeshCommunicators, JoinTheMembers) {
  on_each_count_of_ranks(test_world(), [](Communicator& world) {
    for (const MeshShape& shape : mesh_shapes(world.size())) {
      if (shape.ranks() != world.size()) continue;
      SCOPED_TRACE(shape.describe());
      Mesh mesh(shape, world);
      for (const std::vector<Axis>& axes : axis_subsets())
        EXPECT_EQ(world_ranks_of(mesh.along(axes), world.rank()), mesh.members(axes));
    }
  });
}

TEST(MeshCommunicators, AmongPartOfAnAxis) {
  if (test_world().size() < 8) GTEST_SKIP() << "needs 8 ranks";
  Mesh mesh({.tensor = 2, .pipeline = 4}, test_world());
  const int stage = mesh.coordinate(Axis::pipeline), tensor = mesh.coordinate(Axis::tensor);
  if (stage == 0 || stage == 3) {  // the two stages that share an embedding; the others make no call
    Communicator& ends = mesh.among(Axis::pipeline, {3, 0});
    EXPECT_EQ(ends.rank(), stage == 3 ? 0 : 1);
    EXPECT_EQ(world_ranks_of(ends, test_world().rank()), (std::vector<int>{6 + tensor, tensor}));
    EXPECT_EQ(&mesh.among(Axis::pipeline, {3, 0}), &ends);
  }
  EXPECT_EQ(mesh.along(Axis::pipeline).all_reduce(std::int64_t{stage}, ReduceOp::sum), 6);
}

}  // namespace
}  // namespace fulmen
