// Gathering sharded weights. With ZeRO 1 and 2 that is after an update, into the flat weights. With ZeRO 3 it is a
// layer at a time, into slots, just before the layer is used. A slot is free again when the next layer but so many
// takes it: nothing is allocated in a step.
//
// All ranks of a shard group run the same passes over the same layers, so they gather in the same order.
#pragma once

#include <vector>

#include "model/parameter_store.h"
#include "parallel/mesh.h"
#include "parallel/shard_groups.h"

namespace fulmen {

class WeightGather {
 public:
  // overlap: gathering goes on behind computation, at stage 3 one layer ahead.
  WeightGather(ParameterStore& parameters, Mesh& mesh, bool overlap, const Execution& execution);

  // This rank's parts of the weights have changed (an update, a checkpoint): starts gathering what the next forward
  // pass uses, in its order. Collective.
  void weights_changed();
  // Before a pass through the stage: what no single layer uses (the embedding) is there.
  void begin_pass();
  // Waits for the gathers that were started.
  void wait();
  // The hooks of a layer: its weights are there; the next layer's are under way.
  void before_forward(std::int64_t layer) { use(layer, layer + 1); }
  void before_backward(std::int64_t layer) { use(layer, layer - 1); }

 private:
  static constexpr std::size_t no_bucket = static_cast<std::size_t>(-1);

  void use(std::int64_t layer, std::int64_t next);
  void gather(std::size_t bucket);
  void wait(std::size_t bucket);
  ProfileScope communication() const;
  // At stage 3: gathers into a slot that `in_use` has not, unless the bucket is in one already.
  void gather_into_slot(std::size_t bucket, std::size_t in_use);

  ParameterStore& parameters_;
  Execution execution_;
  std::vector<ShardGroups> groups_;  // by replication
  bool overlap_;
  std::vector<Pending> pending_;                 // per bucket
  std::vector<std::vector<std::size_t>> slots_;  // per group: the bucket that each slot holds, or none
};

}  // namespace fulmen
