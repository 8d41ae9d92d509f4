// Summing gradients over the ranks that hold parts of them, as the parameters' placements say. Bucket by bucket,
// partial gradients are summed over tensor, then over shards to their owners, then across the copies of a shard. Each
// parameter group has its own replicas to sum over (Replication): an expert's are those ranks along data that own it,
// too.
//
// The order of collectives is a function of the schedule alone, so all ranks of a group have the same. With overlap a
// bucket is reduced when its last layer is done with the last micro-batch. The rest follows after the schedule, in the
// order of the shard map. Sharded gradients (ZeRO 2 and 3) are reduced after every micro-batch, with overlap or
// without. Products are reduced when the layer's backward_weight is done, sums when its backward_input is.
#pragma once

#include <vector>

#include "model/parameter_store.h"
#include "parallel/mesh.h"
#include "parallel/shard_groups.h"

namespace fulmen {

class GradientSync {
 public:
  // overlap: reductions go on behind the backward pass. split_tokens: the tensor ranks hold parts of the tokens. Then
  // gradients placed with_tokens are partial over them.
  GradientSync(ParameterStore& parameters, Mesh& mesh, bool overlap, const Execution& execution,
               bool split_tokens = false);

  // Connects the groups that it sums over. Collective.
  void connect();

  // Sets gradients to zero; every layer will be done `micro_batches` times.
  void begin_step(int micro_batches);
  // The hooks of a layer. Its backward_input is over when another layer's begins, or the schedule has ended.
  void before_backward_input(std::int64_t layer);
  void before_backward_weight(std::int64_t layer);
  void after_backward_weight(std::int64_t layer);
  // After the schedule: what stages share (the tied embedding) over replicas and stages; then all that is left, waited
  // for.
  void reduce_shared();
  void reduce_gradients();

 private:
  static constexpr std::int64_t no_layer = -1;
  struct Shared {
    std::size_t bucket;
    Communicator* stages;
  };
  // Elements [begin, end) of a bucket that tensor ranks sum first: neighbours in one call.
  struct TensorSum {
    std::int64_t begin, end;
    Communicator* ranks;
  };
  // The part of a bucket's reduction that is under way.
  enum class Progress : std::uint8_t { none, scattering, summing };
  struct Bucket {
    int passes = 0;  // of its layers, until its gradients are whole
    std::vector<TensorSum> tensor_sums;
    Progress progress = Progress::none;
    bool accumulated = false;  // this rank's part holds the sum of a micro-batch at least
    Pending pending;
  };

  std::vector<TensorSum> tensor_sums(std::size_t bucket, Mesh& mesh, bool split_tokens) const;
  const ShardGroups& groups_of(std::size_t bucket) const;
  // Whether a bucket has a slot during this half of a layer's backward, and only then.
  bool in_slot_for(std::size_t bucket, GradientForm form) const;
  void take_slots(std::int64_t layer, GradientForm form);
  void leave_slots(std::int64_t layer, GradientForm form);
  void count_pass(std::size_t bucket, std::int64_t layer);
  void start(std::size_t bucket);
  void finish_scatter(
      std::size_t bucket);  // adds it where gradients are in slots; starts the sum across copies once they are whole
  void finish(std::size_t bucket);
  void wait(Bucket& bucket);
  ProfileScope communication() const;

  ParameterStore& parameters_;
  Execution execution_;
  std::vector<ShardGroups> groups_;  // by replication
  bool overlap_;
  std::vector<Bucket> buckets_;
  std::vector<std::vector<std::size_t>> slots_;  // per group: the bucket that each slot holds, or none
  std::vector<std::size_t> next_slot_;           // per group
  std::vector<Shared> shared_;
  std::int64_t in_backward_input_ = no_layer;  // the layer that sums its gradients, or did last
};

}  // namespace fulmen
