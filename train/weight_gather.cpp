// Gathering sharded weights.
#include "train/weight_gather.h"

#include <algorithm>

namespace fulmen {

WeightGather::WeightGather(ParameterStore& parameters, Mesh& mesh, bool overlap, const Execution& execution)
    : parameters_(parameters),
      execution_(execution),
      overlap_(overlap),
      pending_(parameters.shard_map().buckets().size()) {
  for (const Replication& replication : parameters.replications())
    groups_.emplace_back(mesh, replication.shards, replication.owned_along);
  for (const ParameterGroup& group : parameters.groups()) slots_.emplace_back(group.weight_slots.size(), no_bucket);
}

ProfileScope WeightGather::communication() const {
  return ProfileScope::communication(execution_.profiler, "weight communication");
}

void WeightGather::wait(std::size_t bucket) {
  if (pending_[bucket].complete()) return;
  const ProfileScope scope = communication();
  pending_[bucket].wait(execution_.stream);
}

void WeightGather::gather(std::size_t bucket) {
  const ProfileScope scope = communication();
  const Tensor part = parameters_.weights_part(bucket), whole = parameters_.bucket_weights(bucket);
  const std::size_t group = parameters_.shard_map().buckets()[bucket].group;
  Communicator& shards = groups_[parameters_.groups()[group].replication].shards();
  if (overlap_)
    pending_[bucket] = shards.start_all_gather(part, whole, execution_.stream);
  else
    shards.all_gather(part, whole, execution_.stream);
}

void WeightGather::weights_changed() {
  const ShardMap& map = parameters_.shard_map();
  if (map.shards() == 1) return;
  wait();
  for (std::vector<std::size_t>& slots : slots_) std::ranges::fill(slots, no_bucket);
  // Forward uses what no layer owns first, then the layers in order: backward's order reversed.
  for (std::size_t b = map.buckets().size(); b-- > 0;)
    if (!parameters_.weights_in_slots(b) && map.buckets()[b].shards > 1) gather(b);
  if (overlap_ && map.first_layer() >= 0)
    for (const std::size_t b : map.buckets_of(map.first_layer()))
      if (parameters_.weights_in_slots(b)) gather_into_slot(b, no_bucket);
}

void WeightGather::wait() {
  for (std::size_t b = 0; b < pending_.size(); ++b) wait(b);
}

void WeightGather::begin_pass() {
  for (std::size_t b = 0; b < pending_.size(); ++b)
    if (parameters_.shard_map().buckets()[b].layers.empty()) wait(b);
}

void WeightGather::gather_into_slot(std::size_t bucket, std::size_t in_use) {
  const std::size_t group = parameters_.shard_map().buckets()[bucket].group;
  std::vector<std::size_t>& slots = slots_[group];
  if (std::ranges::count(slots, bucket) > 0) return;
  const auto slot =
      std::ranges::find_if(slots, [&](std::size_t holder) { return holder == no_bucket || holder != in_use; });
  FULMEN_CHECK(slot != slots.end(), "no slot for the weights of bucket {}", bucket);
  if (*slot != no_bucket) wait(*slot);
  *slot = bucket;
  parameters_.bind_weights(bucket, static_cast<int>(slot - slots.begin()));
  gather(bucket);
}

void WeightGather::use(std::int64_t layer, std::int64_t next) {
  const ShardMap& map = parameters_.shard_map();
  if (map.shards() == 1) return;
  for (const std::size_t b : map.buckets_of(layer)) {
    if (parameters_.weights_in_slots(b)) gather_into_slot(b, no_bucket);
    wait(b);
    if (!overlap_ || !parameters_.weights_in_slots(b)) continue;
    for (const std::size_t ahead : map.buckets_of(next))
      if (map.buckets()[ahead].group == map.buckets()[b].group && parameters_.weights_in_slots(ahead))
        gather_into_slot(ahead, b);
  }
}

}  // namespace fulmen
