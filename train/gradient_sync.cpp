// Summing gradients over ranks.
#include "train/gradient_sync.h"

#include <utility>

#include "kernels/elementwise.h"

namespace fulmen {

namespace {
constexpr std::size_t no_bucket = static_cast<std::size_t>(-1);
}

GradientSync::GradientSync(ParameterStore& parameters, Mesh& mesh, bool overlap, const Execution& execution,
                           bool split_tokens)
    : parameters_(parameters),
      execution_(execution),
      overlap_(overlap),
      buckets_(parameters.shard_map().buckets().size()),
      next_slot_(parameters.groups().size()) {
  for (const Replication& replication : parameters.replications())
    groups_.emplace_back(mesh, replication.shards, replication.owned_along);
  for (const ParameterGroup& group : parameters.groups()) slots_.emplace_back(group.gradient_slots.size(), no_bucket);
  for (std::size_t b = 0; b < buckets_.size(); ++b) buckets_[b].tensor_sums = tensor_sums(b, mesh, split_tokens);
  for (ParameterId id = 0; id < parameters.size(); ++id) {
    const ParameterDeclaration& declaration = parameters.declaration(id);
    FULMEN_CHECK(declaration.along(Axis::data) == AxisPlacement::replicated_partial &&
                     declaration.along(Axis::sequence) == AxisPlacement::replicated_partial,
                 "{}: only partial gradients along data and sequence are summed", declaration.name);
    if (declaration.along(Axis::pipeline) != AxisPlacement::shared) continue;
    FULMEN_CHECK(declaration.layer < 0, "{} is shared between stages and belongs to one layer", declaration.name);
    shared_.push_back(
        {parameters.shard_map().place(id).bucket, &mesh.among(Axis::pipeline, declaration.shared_stages)});
  }
}

std::vector<GradientSync::TensorSum> GradientSync::tensor_sums(std::size_t bucket, Mesh& mesh,
                                                               bool split_tokens) const {
  std::vector<TensorSum> sums;
  if (mesh.size(Axis::tensor) == 1) return sums;
  bool follows = false;  // the parameter before is summed whole, too
  for (const ParameterId id : parameters_.shard_map().buckets()[bucket].parameters) {
    const ParameterDeclaration& declaration = parameters_.declaration(id);
    const LocalLayout& layout = parameters_.layout(id);
    const std::int64_t begin = parameters_.shard_map().place(id).offset;
    const AxisPlacement placement = declaration.along(Axis::tensor);
    const bool whole =
        placement == AxisPlacement::replicated_partial || (placement == AxisPlacement::with_tokens && split_tokens);
    if (whole && !follows) sums.push_back({begin, begin, &mesh.along(Axis::tensor)});
    if (whole) sums.back().end = begin + layout.elements();
    follows = whole;
    for (const LocalSegment& segment : layout.segments) {
      if (segment.holders.size() < 2) continue;
      Communicator* const holders = &mesh.among(Axis::tensor, segment.holders);
      const std::int64_t from = begin + segment.local_begin * layout.columns;
      if (sums.empty() || sums.back().ranks != holders || sums.back().end != from)
        sums.push_back({from, from, holders});
      sums.back().end = from + segment.indices.size() * layout.columns;
    }
  }
  return sums;
}

const ShardGroups& GradientSync::groups_of(std::size_t b) const {
  return groups_[parameters_.groups()[parameters_.shard_map().buckets()[b].group].replication];
}

void GradientSync::connect() {
  const Connections connections = overlap_ ? Connections::started : Connections::plain;
  for (const ShardGroups& groups : groups_) {
    groups.shards().connect(connections);
    groups.copies().connect(connections);
  }
  for (const Bucket& bucket : buckets_)
    for (const TensorSum& sum : bucket.tensor_sums) sum.ranks->connect(Connections::plain);
  for (const Shared& shared : shared_) shared.stages->connect(Connections::plain);
}

void GradientSync::begin_step(int micro_batches) {
  parameters_.zero_gradients(execution_);
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    buckets_[b].passes = static_cast<int>(parameters_.shard_map().buckets()[b].layers.size()) * micro_batches;
    buckets_[b].progress = Progress::none;
    buckets_[b].accumulated = false;
  }
}

bool GradientSync::in_slot_for(std::size_t b, GradientForm form) const {
  const std::size_t group = parameters_.shard_map().buckets()[b].group;
  return parameters_.gradients_in_slots(b) && parameters_.groups()[group].key.gradient == form;
}

void GradientSync::take_slots(std::int64_t layer, GradientForm form) {
  for (const std::size_t b : parameters_.shard_map().buckets_of(layer)) {
    if (!in_slot_for(b, form)) continue;
    const std::size_t group = parameters_.shard_map().buckets()[b].group;
    std::size_t& slot = next_slot_[group];
    std::size_t& holder = slots_[group][slot];
    finish_scatter(b);
    if (holder != no_bucket) finish_scatter(holder);
    parameters_.bind_gradients(b, static_cast<int>(slot));
    holder = b;
    slot = (slot + 1) % slots_[group].size();
    parameters_.zero_slot(b, execution_);
  }
}

void GradientSync::leave_slots(std::int64_t layer, GradientForm form) {
  for (const std::size_t b : parameters_.shard_map().buckets_of(layer)) {
    if (!in_slot_for(b, form)) continue;
    count_pass(b, layer);
    start(b);
    if (!overlap_) finish_scatter(b);
  }
}

void GradientSync::count_pass(std::size_t b, std::int64_t layer) {
  FULMEN_CHECK(buckets_[b].passes > 0, "layer {} is done more often than there are micro-batches", layer);
  --buckets_[b].passes;
}

void GradientSync::before_backward_input(std::int64_t layer) {
  leave_slots(std::exchange(in_backward_input_, layer), GradientForm::sum);
  take_slots(layer, GradientForm::sum);
}

void GradientSync::before_backward_weight(std::int64_t layer) { take_slots(layer, GradientForm::product); }

void GradientSync::after_backward_weight(std::int64_t layer) {
  leave_slots(layer, GradientForm::product);
  for (const std::size_t b : parameters_.shard_map().buckets_of(layer)) {
    if (parameters_.gradients_in_slots(b)) continue;
    count_pass(b, layer);
    if (overlap_ && buckets_[b].passes == 0) start(b);
  }
}

ProfileScope GradientSync::communication() const {
  return ProfileScope::communication(execution_.profiler, "gradient communication");
}

void GradientSync::start(std::size_t b) {
  Bucket& bucket = buckets_[b];
  Communicator& shards = groups_of(b).shards();
  // The sum across copies of an earlier bucket then overlaps with this bucket's scatter.
  if (groups_of(b).copies().size() > 1 && shards.size() > 1)
    for (std::size_t other = 0; other < buckets_.size(); ++other) finish_scatter(other);
  for (const TensorSum& sum : bucket.tensor_sums) {
    const ProfileScope scope = communication();
    sum.ranks->all_reduce(parameters_.bucket_gradients(b).slice(0, sum.begin, sum.end), ReduceOp::sum,
                          execution_.stream);
  }
  bucket.progress = Progress::scattering;
  if (shards.size() == 1) return finish_scatter(b);
  const ProfileScope scope = communication();
  const Tensor whole = parameters_.bucket_gradients(b), part = parameters_.own_part(b, whole);
  if (overlap_)
    bucket.pending = shards.start_reduce_scatter(whole, part, ReduceOp::sum, execution_.stream);
  else
    shards.reduce_scatter(whole, part, ReduceOp::sum, execution_.stream);
}

void GradientSync::wait(Bucket& bucket) {
  if (bucket.pending.complete()) return;
  const ProfileScope scope = communication();
  bucket.pending.wait(execution_.stream);
}

void GradientSync::finish_scatter(std::size_t b) {
  Bucket& bucket = buckets_[b];
  if (bucket.progress != Progress::scattering) return;
  wait(bucket);
  const Tensor sum = parameters_.gradients_part(b);
  if (parameters_.gradients_in_slots(b)) {
    const Tensor part = parameters_.own_part(b, parameters_.bucket_gradients(b));
    if (std::exchange(bucket.accumulated, true))
      add(execution_, sum, part, sum);
    else
      copy(execution_, part, sum);
  }
  bucket.progress = bucket.passes > 0 ? Progress::none : Progress::summing;
  Communicator& copies = groups_of(b).copies();
  if (bucket.passes > 0 || copies.size() == 1) return;
  const ProfileScope scope = communication();
  if (overlap_)
    bucket.pending = copies.start_all_reduce(sum, ReduceOp::sum, execution_.stream);
  else
    copies.all_reduce(sum, ReduceOp::sum, execution_.stream);
}

void GradientSync::finish(std::size_t b) {
  FULMEN_CHECK(buckets_[b].passes == 0, "bucket {} is reduced before its layers are done", b);
  if (buckets_[b].progress == Progress::none) start(b);
  finish_scatter(b);
  wait(buckets_[b]);
}

void GradientSync::reduce_shared() {
  for (const Shared& shared : shared_) {
    finish(shared.bucket);
    const ProfileScope scope = communication();
    shared.stages->all_reduce(parameters_.gradients_part(shared.bucket), ReduceOp::sum, execution_.stream);
  }
}

void GradientSync::reduce_gradients() {
  leave_slots(std::exchange(in_backward_input_, no_layer), GradientForm::sum);
  for (std::size_t b = 0; b < buckets_.size(); ++b)
    if (overlap_ && buckets_[b].progress == Progress::none) start(b);
  for (std::size_t b = 0; b < buckets_.size(); ++b) finish(b);
}

}  // namespace fulmen
