// Flat storage of parameters and gradients.
#include "model/parameter_store.h"

#include <algorithm>
#include <iterator>

#include "kernels/elementwise.h"
#include "parallel/shard_groups.h"

namespace fulmen {

namespace {

std::int64_t aligned(std::int64_t elements) {
  return (elements + parameter_alignment - 1) / parameter_alignment * parameter_alignment;
}

// Appends to the last run where the two are neighbours in memory.
void append_run(FlatParts& runs, const Tensor& run) {
  if (!runs.empty()) {
    const Tensor& last = runs.back();
    const bool follows =
        static_cast<std::byte*>(last.data()) + last.bytes() == run.data() && last.dtype() == run.dtype();
    if (follows) {
      runs.back() = Tensor(last.data(), last.dtype(), {last.elements() + run.elements()}, last.device());
      return;
    }
  }
  runs.push_back(run);
}

// Where a parameter lies in its bucket. Sums over tensor are many and small: they lie together, so that one call takes
// all of a bucket.
int order_in_bucket(const ParameterDeclaration& declaration) {
  if (declaration.group.gradient == GradientForm::product) return 0;
  switch (declaration.along(Axis::tensor)) {
    case AxisPlacement::replicated_partial: return 0;
    case AxisPlacement::with_tokens: return 1;
    default: return 2;
  }
}

}  // namespace

ParameterStore::ParameterStore(std::vector<ParameterDeclaration> declarations, const Mesh& mesh, Precision precision,
                               const Execution& execution, const Sharding& sharding)
    : declarations_(std::move(declarations)),
      precision_(precision),
      sharding_(sharding),
      tensor_coordinate_(mesh.coordinate(Axis::tensor)),
      pipeline_coordinate_(mesh.coordinate(Axis::pipeline)) {
  FULMEN_CHECK(sharding.stage > 0 || sharding.shards == 1, "{} shards without ZeRO", sharding.shards);
  for (ParameterId id = 0; id < declarations_.size(); ++id) {
    FULMEN_CHECK(ids_.emplace(declarations_[id].name, id).second, "parameter {} is declared twice",
                 declarations_[id].name);
    layouts_.push_back(local_layout(declarations_[id], mesh));
  }
  make_groups(mesh);
  place_buckets();
  allocate(execution);
}

std::size_t ParameterStore::replication_for(const std::vector<Axis>& owned_along, const Mesh& mesh) {
  const auto found = std::ranges::find(replications_, owned_along, &Replication::owned_along);
  if (found != replications_.end()) return static_cast<std::size_t>(found - replications_.begin());
  const int shards = shard_count(mesh, sharding_.shards, owned_along);
  const int replica = ShardGroups::replica(mesh, owned_along), replicas = ShardGroups::replicas(mesh, owned_along);
  replications_.push_back({owned_along, shards, replica % shards, replicas / shards, replica / shards});
  return replications_.size() - 1;
}

std::size_t ParameterStore::group_for(const ParameterDeclaration& declaration, const Mesh& mesh) {
  const std::size_t replication = replication_for(declaration.owned_along(), mesh);
  const auto found = std::ranges::find_if(groups_, [&](const ParameterGroup& group) {
    return group.key == declaration.group && group.replication == replication;
  });
  if (found != groups_.end()) return static_cast<std::size_t>(found - groups_.begin());
  groups_.emplace_back();
  groups_.back().key = declaration.group;
  groups_.back().replication = replication;
  return groups_.size() - 1;
}

void ParameterStore::make_groups(const Mesh& mesh) {
  replication_for({}, mesh);
  std::vector<MappedParameter> mapped;
  for (ParameterId id = 0; id < declarations_.size(); ++id) {
    const ParameterDeclaration& declaration = declarations_[id];
    MappedParameter parameter{declaration.name, group_for(declaration, mesh), declaration.layer,
                              layouts_[id].elements()};
    parameter.order = order_in_bucket(declaration);
    parameter.weight = local_layout(declaration, mesh, mesh.rank_at(Axis::tensor, 0)).elements();
    mapped.push_back(std::move(parameter));
  }
  ShardMapOptions options;
  options.shards = sharding_.shards;
  for (const ParameterGroup& group : groups_) options.group_shards.push_back(replications_[group.replication].shards);
  // A bucket in a slot lives no longer than its layer's pass.
  options.smallest_bucket = sharding_.stage >= 2 ? 1 : sharding_.smallest_bucket;
  map_ = ShardMap(std::move(mapped), options);
  for (std::size_t g = 0; g < groups_.size(); ++g) groups_[g].elements = map_.group_elements(g);
}

void ParameterStore::place_buckets() {
  std::vector<std::int64_t> weights(groups_.size()), gradients(groups_.size());  // placed so far
  storage_.resize(map_.buckets().size());
  const auto in_order = [&](std::size_t group) {  // a group's buckets by their place in it
    std::vector<std::size_t> order;
    for (std::size_t b = 0; b < storage_.size(); ++b)
      if (group_of(b) == group) order.push_back(b);
    std::ranges::sort(order, {}, [&](std::size_t b) { return map_.buckets()[b].begin; });
    return order;
  };
  for (std::size_t group = 0; group < groups_.size(); ++group)
    for (const std::size_t b : in_order(group)) {
      Storage& storage = storage_[b];
      const bool cut = map_.buckets()[b].shards > 1 && !map_.buckets()[b].layers.empty() && !groups_[group].key.whole;
      storage.whole_weights = sharding_.stage < 3 || !cut;
      storage.whole_gradients = sharding_.stage < 2 || !cut;
      storage.weights_begin = weights[group];
      storage.gradients_begin = gradients[group];
      const std::int64_t whole = map_.buckets()[b].elements, part = map_.part_elements(b);
      weights[group] += storage.whole_weights ? whole : part;
      gradients[group] += storage.whole_gradients ? whole : part;
    }
}

void ParameterStore::allocate(const Execution& execution) {
  for (std::size_t g = 0; g < groups_.size(); ++g) {
    ParameterGroup& group = groups_[g];
    std::int64_t weights = 0, gradients = 0, weight_slot = 0, gradient_slot = 0;
    for (std::size_t b = 0; b < storage_.size(); ++b) {
      if (group_of(b) != g) continue;
      const std::int64_t whole = map_.buckets()[b].elements, part = map_.part_elements(b);
      weights += storage_[b].whole_weights ? whole : part;
      gradients += storage_[b].whole_gradients ? whole : part;
      if (weights_in_slots(b)) weight_slot = std::max(weight_slot, whole);
      if (gradients_in_slots(b)) gradient_slot = std::max(gradient_slot, whole);
    }
    const auto allocate = [&](DType dtype, std::int64_t elements, MemoryKind kind) {
      return OwnedTensor(execution.device, dtype, {elements}, kind, *execution.ledger);
    };
    const DType weight_type = precision_.weights_of(group.key), gradient_type = precision_.gradients_of(group.key);
    group.weights = allocate(weight_type, weights, MemoryKind::weights);
    group.gradients = allocate(gradient_type, gradients, MemoryKind::gradients);
    for (int slot = 0; weight_slot > 0 && slot < sharding_.weight_slots; ++slot)
      group.weight_slots.push_back(allocate(weight_type, weight_slot, MemoryKind::weights));
    for (int slot = 0; gradient_slot > 0 && slot < sharding_.gradient_slots; ++slot)
      group.gradient_slots.push_back(allocate(gradient_type, gradient_slot, MemoryKind::gradients));
  }
  unwritten_.assign(declarations_.size(), false);
}

ParameterId ParameterStore::id(const std::string& name) const {
  const auto found = ids_.find(name);
  FULMEN_CHECK(found != ids_.end(), "parameter {} was not declared on this rank", name);
  return found->second;
}

Tensor ParameterStore::view(ParameterId id, const Tensor& bucket) const {
  const LocalLayout& layout = layouts_[id];
  const std::int64_t begin = map_.place(id).offset;
  return bucket.slice(0, begin, begin + layout.rows * layout.columns).reshape({layout.rows, layout.columns});
}

Tensor ParameterStore::weight(ParameterId id) const { return view(id, bucket_weights(map_.place(id).bucket)); }
Tensor ParameterStore::gradient(ParameterId id) const { return view(id, bucket_gradients(map_.place(id).bucket)); }

Tensor ParameterStore::bucket_weights(std::size_t bucket) const {
  const ParameterGroup& group = groups_[group_of(bucket)];
  const Storage& storage = storage_[bucket];
  const std::int64_t elements = map_.buckets()[bucket].elements;
  if (storage.whole_weights)
    return group.weights.view().slice(0, storage.weights_begin, storage.weights_begin + elements);
  FULMEN_CHECK(storage.weight_slot >= 0, "the weights of bucket {} are not gathered", bucket);
  return group.weight_slots[static_cast<std::size_t>(storage.weight_slot)].view().slice(0, 0, elements);
}

Tensor ParameterStore::bucket_gradients(std::size_t bucket) const {
  const ParameterGroup& group = groups_[group_of(bucket)];
  const Storage& storage = storage_[bucket];
  const std::int64_t elements = map_.buckets()[bucket].elements;
  if (storage.whole_gradients)
    return group.gradients.view().slice(0, storage.gradients_begin, storage.gradients_begin + elements);
  FULMEN_CHECK(storage.gradient_slot >= 0, "the gradients of bucket {} have no slot", bucket);
  return group.gradient_slots[static_cast<std::size_t>(storage.gradient_slot)].view().slice(0, 0, elements);
}

void ParameterStore::bind_weights(std::size_t bucket, int slot) {
  for (std::size_t b = 0; b < storage_.size(); ++b)
    if (group_of(b) == group_of(bucket) && storage_[b].weight_slot == slot) storage_[b].weight_slot = -1;
  storage_[bucket].weight_slot = slot;
}

void ParameterStore::bind_gradients(std::size_t bucket, int slot) {
  for (std::size_t b = 0; b < storage_.size(); ++b)
    if (group_of(b) == group_of(bucket) && storage_[b].gradient_slot == slot) storage_[b].gradient_slot = -1;
  storage_[bucket].gradient_slot = slot;
}

bool ParameterStore::counted(ParameterId id) const {
  const ParameterDeclaration& declaration = declarations_[id];
  if (declaration.along(Axis::tensor) != AxisPlacement::split && tensor_coordinate_ != 0) return false;
  if (declaration.along(Axis::pipeline) != AxisPlacement::shared) return true;
  return declaration.shared_stages.front() == pipeline_coordinate_;
}

// With the gap behind the parameter where all of it counts, so that runs join.
std::vector<IndexRange> ParameterStore::counted_elements(ParameterId id) const {
  if (!counted(id)) return {};
  const LocalLayout& layout = layouts_[id];
  if (std::ranges::all_of(layout.segments, &LocalSegment::first_copy)) return {{0, aligned(layout.elements())}};
  std::vector<IndexRange> ranges;  // segments with copies are rows of a single matrix
  for (const LocalSegment& segment : layout.segments)
    if (segment.first_copy)
      ranges.push_back(
          {segment.local_begin * layout.columns, (segment.local_begin + segment.indices.size()) * layout.columns});
  return ranges;
}

FlatParts ParameterStore::counted_in(const FlatParts& parts, std::size_t group) const {
  FlatParts runs;
  for (std::size_t b = 0; b < parts.size(); ++b) {
    if (group_of(b) != group) continue;
    const std::int64_t first = replication_of(b).shard * map_.part_elements(b), end = first + map_.part_elements(b);
    for (const ParameterId id : map_.buckets()[b].parameters)
      for (const IndexRange& range : counted_elements(id)) {
        const std::int64_t offset = map_.place(id).offset;
        const std::int64_t from = std::max(first, offset + range.begin), to = std::min(end, offset + range.end);
        if (from < to) append_run(runs, parts[b].slice(0, from - first, to - first));
      }
  }
  return runs;
}

void ParameterStore::initialize(std::uint64_t seed, const Execution& execution) {
  for (ParameterId id = 0; id < declarations_.size(); ++id) {
    const std::size_t bucket = map_.place(id).bucket;
    if (weights_in_slots(bucket)) continue;
    const Tensor memory = weight(id).flatten();
    for (const ParameterPiece& piece : pieces_of(declarations_[id], layouts_[id], {0, memory.elements()}, memory))
      initialize_piece(execution, declarations_[id], seed, piece);
  }
  if (sharding_.stage >= 3) initialize(seed, execution, flat_weights());
}

void ParameterStore::initialize(std::uint64_t seed, const Execution& execution, const FlatParts& parts) const {
  for (ParameterId id = 0; id < declarations_.size(); ++id)
    for (const ParameterPiece& piece : owned_pieces(id, parts))
      initialize_piece(execution, declarations_[id], seed, piece);
}

void ParameterStore::zero_gradients(const Execution& execution) {
  for (ParameterGroup& group : groups_)
    if (group.key.gradient == GradientForm::sum) fill_zero(execution, group.gradients);
  for (ParameterId id = 0; id < declarations_.size(); ++id) unwritten_[id] = is_product(id);
}

void ParameterStore::zero_slot(std::size_t bucket, const Execution& execution) {
  const Tensor whole = bucket_gradients(bucket);
  if (groups_[group_of(bucket)].key.gradient == GradientForm::sum) return fill_zero(execution, whole);
  std::int64_t end = 0;
  const auto fill_gap = [&](std::int64_t next) {
    if (next > end) fill_zero(execution, whole.slice(0, end, next));
  };
  for (const ParameterId id : map_.buckets()[bucket].parameters) {
    unwritten_[id] = true;
    fill_gap(map_.place(id).offset);
    end = map_.place(id).offset + map_.parameters()[id].elements;
  }
  fill_gap(whole.elements());
}

std::vector<ParameterPiece> ParameterStore::owned_pieces(ParameterId id, const FlatParts& parts) const {
  const ShardMap::Place& place = map_.place(id);
  const int shard = replication_of(place.bucket).shard;
  const IndexRange range = map_.owned(id, shard);
  if (range.size() == 0) return {};
  const std::int64_t begin = place.offset + range.begin - shard * map_.part_elements(place.bucket);
  return pieces_of(declarations_[id], layouts_[id], range, parts[place.bucket].slice(0, begin, begin + range.size()));
}

std::vector<ParameterPiece> ParameterStore::pieces(const FlatParts& parts) const {
  std::vector<ParameterPiece> list;
  std::vector<int> turns(replications_.size());  // ranks with the same shard of some have the same pieces of them alone
  for (ParameterId id = 0; id < declarations_.size(); ++id) {
    const std::size_t of = groups_[map_.parameters()[id].group].replication;
    for (ParameterPiece& piece : owned_pieces(id, parts)) {
      const bool ours = turns[of]++ % replications_[of].copies == replications_[of].copy;
      piece.owned = piece.owned && counted(id) && ours;
      list.push_back(std::move(piece));
    }
  }
  return list;
}

Tensor ParameterStore::own_part(std::size_t bucket, const Tensor& whole) const {
  const std::int64_t part = map_.part_elements(bucket), begin = replication_of(bucket).shard * part;
  return whole.slice(0, begin, begin + part);
}

Tensor ParameterStore::weights_part(std::size_t bucket) const {
  if (!weights_in_slots(bucket)) return own_part(bucket, bucket_weights(bucket));
  const std::int64_t begin = storage_[bucket].weights_begin;
  return groups_[group_of(bucket)].weights.view().slice(0, begin, begin + map_.part_elements(bucket));
}

Tensor ParameterStore::gradients_part(std::size_t bucket) const {
  if (!gradients_in_slots(bucket)) return own_part(bucket, bucket_gradients(bucket));
  const std::int64_t begin = storage_[bucket].gradients_begin;
  return groups_[group_of(bucket)].gradients.view().slice(0, begin, begin + map_.part_elements(bucket));
}

FlatParts ParameterStore::flat_weights() const {
  FlatParts parts;
  for (std::size_t b = 0; b < storage_.size(); ++b) parts.push_back(weights_part(b));
  return parts;
}

FlatParts ParameterStore::flat_gradients() const {
  FlatParts parts;
  for (std::size_t b = 0; b < storage_.size(); ++b) parts.push_back(gradients_part(b));
  return parts;
}

FlatParts ParameterStore::parts_in(const std::vector<Tensor>& flat) const {
  FlatParts parts;
  for (std::size_t b = 0; b < storage_.size(); ++b) parts.push_back(part_in(flat, b));
  return parts;
}

Tensor ParameterStore::part_in(const std::vector<Tensor>& flat, std::size_t bucket) const {
  const std::int64_t begin = map_.buckets()[bucket].begin / map_.buckets()[bucket].shards;
  return flat[group_of(bucket)].slice(0, begin, begin + map_.part_elements(bucket));
}

}  // namespace fulmen
