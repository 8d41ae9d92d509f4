// Who shares shards with whom: the replicas (ranks along data and sequence) in groups of neighbours that hold a shard
// each, and across the groups the ranks that hold the same one.
#pragma once

#include "parallel/layout.h"
#include "parallel/mesh.h"

namespace fulmen {

// How many ranks hold a shard each: 1 without ZeRO, else what parallel.zero_group says. Collective over the mesh.
// Throws UserError for a number that does not divide the replicas and for nodes that hold unequal numbers of them.
int shard_count(const LayoutConfig& layout, Mesh& mesh);

// What is wrong with a value of parallel.zero_group (all, node or a number), or "".
std::string zero_group_problem(const std::string& zero_group);

class ShardGroups {
 public:
  // `shards` divides the replicas.
  ShardGroups(Mesh& mesh, int shards);

  Communicator& shards() const { return *shards_; }  // of which this rank holds shard number shards().rank()
  Communicator& copies() const { return *copies_; }  // the holders of this rank's shard

  // This rank's number among the replicas, and how many there are.
  static int replica(const Mesh& mesh);
  static int replicas(const Mesh& mesh);

 private:
  Communicator* shards_;
  Communicator* copies_;
};

}  // namespace fulmen
