// Which ranks share shards. A parameter's replicas are the ranks along data and sequence that hold equal copies of it.
// They form groups of neighbours that hold a shard each, and across the groups groups of ranks that hold the same
// shard.
#pragma once

#include "parallel/layout.h"
#include "parallel/mesh.h"

namespace fulmen {

// How many ranks hold a shard each: 1 without ZeRO, else what parallel.zero_group says. Collective over the mesh.
// Throws UserError for a number that does not divide the replicas and for nodes that hold unequal numbers of them.
int shard_count(const LayoutConfig& layout, Mesh& mesh);
// The same for parameters that are owned along axes inside data, where `shards` ranks hold a shard of all others. It
// counts as many of those ranks as hold equal copies, so that the shards stay among the same neighbours.
int shard_count(const Mesh& mesh, int shards, const std::vector<Axis>& owned_along);

// The problem with a value of parallel.zero_group (all, node or a number), or "".
std::string zero_group_problem(const std::string& zero_group);

// For the parameters that are owned along the same axes inside data (none: every rank along data holds them).
class ShardGroups {
 public:
  // `shards` divides the replicas.
  ShardGroups(Mesh& mesh, int shards, const std::vector<Axis>& owned_along = {});

  Communicator& shards() const { return *shards_; }  // of which this rank holds shard number shards().rank()
  Communicator& copies() const { return *copies_; }  // the holders of this rank's shard

  // This rank's number among the replicas, and how many there are.
  static int replica(const Mesh& mesh, const std::vector<Axis>& owned_along = {});
  static int replicas(const Mesh& mesh, const std::vector<Axis>& owned_along = {});

 private:
  Communicator* shards_;
  Communicator* copies_;
};

}  // namespace fulmen
