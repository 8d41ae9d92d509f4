// The parameters of one rank: views into flat buffers, one set per parameter group, whole or sharded over replicas.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "framework/execution.h"
#include "model/parameter_pieces.h"
#include "parallel/shard_map.h"

namespace fulmen {

// The model's arithmetic: fp32 or fp64 throughout, or on a GPU bf16 with fp32 gradients.
struct Precision {
  DType parameters = DType::fp32;  // weights and activations
  DType gradients = DType::fp32;
  // The values that the optimiser updates: the weights themselves, or an fp32 copy of narrower weights.
  DType master() const { return accumulation_dtype(parameters); }

  // How wide the weights, gradients and moments of a group's parameters are, and whether the optimiser has a master
  // copy.
  DType weights_of(const ParameterGroupKey& key) const { return wider(parameters, key.narrowest); }
  DType gradients_of(const ParameterGroupKey& key) const { return wider(gradients, key.narrowest); }
  DType moments_of(const ParameterGroupKey& key) const {
    return weights_of(key) == DType::fp64 ? DType::fp64 : DType::fp32;
  }
  bool copies_weights_of(const ParameterGroupKey& key) const { return size_of(weights_of(key)) < size_of(master()); }

 private:
  static DType wider(DType a, DType b) { return size_of(a) < size_of(b) ? b : a; }
};

// Which data of the parameters is sharded over the replicas (Rajbhandari et al., ZeRO, arXiv 1910.02054). At stage 1 it
// is the optimiser's state, at 2 also the gradients, at 3 also the weights.
struct Sharding {
  int stage = 0;
  int shards = 1;                          // ranks along data and sequence that hold a shard each; 1 at stage 0
  std::int64_t smallest_bucket = 1 << 24;  // elements; from stage 2 on each layer has buckets of its own
  int gradient_slots = 1;                  // whole buckets of gradients that may exist at once, at stage 2 and 3
  int weight_slots = 1;                    // whole buckets of weights, at stage 3
};

using ParameterId = std::size_t;

// The ranks along data and sequence that hold equal copies of some parameters. ZeRO forms `copies` groups of them, each
// of `shards` neighbours with a shard each.
struct Replication {
  std::vector<Axis> owned_along;  // axes inside data: a replica has this rank's place along them
  int shards = 1;
  int shard = 0;   // that this rank owns of each bucket
  int copies = 1;  // owners of the same shard
  int copy = 0;    // this rank's number among them
};

// The parameters of one group, laid end to end as the shard map says; the gaps are zero and stay zero.
struct ParameterGroup {
  ParameterGroupKey key;
  std::size_t replication = 0;                            // whose replicas it has, in ParameterStore::replications()
  std::int64_t elements = 0;                              // of all its buckets
  OwnedTensor weights;                                    // flat, Precision::parameters or as wide as the key asks
  OwnedTensor gradients;                                  // flat, Precision::gradients or as wide as the key asks
  std::vector<OwnedTensor> weight_slots, gradient_slots;  // each as large as the group's largest sharded bucket
};

// This rank's part of every bucket, in the order of the buckets: what it updates, saves and loads. Without shards the
// parts are the buckets.
using FlatParts = std::vector<Tensor>;

class ParameterStore {
 public:
  // Sharing and splitting follow this rank's place in the mesh. Weights and gradients start as zero.
  ParameterStore(std::vector<ParameterDeclaration> declarations, const Mesh& mesh, Precision precision,
                 const Execution& execution, const Sharding& sharding = {});

  // Throws InternalError for a name that was not declared.
  ParameterId id(const std::string& name) const;
  std::size_t size() const { return declarations_.size(); }
  const ParameterDeclaration& declaration(ParameterId id) const { return declarations_[id]; }
  const LocalLayout& layout(ParameterId id) const { return layouts_[id]; }
  const Precision& precision() const { return precision_; }
  const Sharding& sharding() const { return sharding_; }
  const ShardMap& shard_map() const { return map_; }  // its parameters are numbered as here

  // Local matrices [rows, columns]. Layers ask at each use: where they are sharded, their bucket must be in a slot.
  Tensor weight(ParameterId id) const;
  Tensor gradient(ParameterId id) const;
  // The same as products read them, [out, in]: views of the transpose where the declaration is transposed.
  Tensor product_weight(ParameterId id) const { return as_product(id, weight(id)); }
  Tensor product_gradient(ParameterId id) const { return as_product(id, gradient(id)); }

  const std::vector<ParameterGroup>& groups() const { return groups_; }
  // First the group of parameters which no axis inside data owns, whether there are any or not.
  const std::vector<Replication>& replications() const { return replications_; }
  const Replication& replication_of(std::size_t bucket) const {
    return replications_[groups_[group_of(bucket)].replication];
  }

  // Whole buckets [elements], in their own memory or in the slot that they are bound to.
  Tensor bucket_weights(std::size_t bucket) const;
  Tensor bucket_gradients(std::size_t bucket) const;
  // Whether the whole bucket exists in a slot only: true for a layer's bucket, unless its key says otherwise. A
  // parameter that no single layer uses (the embedding, used at both ends of a micro-batch) always exists whole.
  bool weights_in_slots(std::size_t bucket) const { return !storage_[bucket].whole_weights; }
  bool gradients_in_slots(std::size_t bucket) const { return !storage_[bucket].whole_gradients; }
  // Gives a slot of the bucket's group to it; the slot's former bucket is then in none.
  void bind_weights(std::size_t bucket, int slot);
  void bind_gradients(std::size_t bucket, int slot);

  // Every element from its declaration's initialiser: a pure function of (seed, tensor name, global index). It is drawn
  // in fp64 and rounded to the element's dtype, to bf16 by way of fp32, so that it equals a rounded fp32 copy.
  void initialize(std::uint64_t seed, const Execution& execution);
  // The same into this rank's parts of another copy of the weights.
  void initialize(std::uint64_t seed, const Execution& execution, const FlatParts& parts) const;
  // Gradients count as zero from here on. Sums are set to zero. Products are not written: what comes first, as
  // first_accumulation says, must overwrite what is left of the step before. A step forms every gradient of that form.
  void zero_gradients(const Execution& execution);
  // The same for a bucket in a slot, which may hold what is left of another bucket.
  void zero_slot(std::size_t bucket, const Execution& execution);
  // Whether nothing was added to this gradient, a product, since it counted as zero. True once.
  bool first_accumulation(ParameterId id) { return std::exchange(unwritten_[id], false); }

  // The local pieces of every logical tensor as they lie in `parts` (of weights, gradients or moments alike). Padding
  // belongs to no piece. Ownership is dealt out over equal copies along data and sequence.
  std::vector<ParameterPiece> pieces(const FlatParts& parts) const;
  FlatParts flat_weights() const;
  FlatParts flat_gradients() const;  // sums over the replicas only after reduction
  Tensor weights_part(std::size_t bucket) const;
  Tensor gradients_part(std::size_t bucket) const;
  // This rank's part of a whole bucket.
  Tensor own_part(std::size_t bucket, const Tensor& whole) const;
  // The parts in flat memory that has an element for each of a group's that this rank owns; one tensor per group.
  FlatParts parts_in(const std::vector<Tensor>& flat) const;
  Tensor part_in(const std::vector<Tensor>& flat, std::size_t bucket) const;
  std::int64_t part_elements(std::size_t group) const {
    return groups_[group].elements / replications_[groups_[group].replication].shards;
  }

  // The runs of a group's parts that count in sums over ranks: of equal copies along tensor and pipeline exactly one
  // does. Copies along data and sequence count alike.
  FlatParts counted_in(const FlatParts& parts, std::size_t group) const;

 private:
  // Where a bucket lies in its group's weights and gradients, whole or this rank's part alone, and the slots that it is
  // bound to.
  struct Storage {
    bool whole_weights = true, whole_gradients = true;
    std::int64_t weights_begin = 0, gradients_begin = 0;
    int weight_slot = -1, gradient_slot = -1;
  };
  std::size_t group_for(const ParameterDeclaration& declaration, const Mesh& mesh);
  std::size_t replication_for(const std::vector<Axis>& owned_along, const Mesh& mesh);
  void make_groups(const Mesh& mesh);
  void place_buckets();
  void allocate(const Execution& execution);
  std::size_t group_of(std::size_t bucket) const { return map_.buckets()[bucket].group; }
  bool is_product(ParameterId id) const { return declarations_[id].group.gradient == GradientForm::product; }
  Tensor view(ParameterId id, const Tensor& bucket) const;
  Tensor as_product(ParameterId id, const Tensor& matrix) const {
    return declarations_[id].transposed ? matrix.transpose() : matrix;
  }
  bool counted(ParameterId id) const;  // this rank's copy, but for what copies of segments say
  std::vector<IndexRange> counted_elements(ParameterId id) const;
  std::vector<ParameterPiece> owned_pieces(ParameterId id, const FlatParts& parts) const;

  std::vector<ParameterDeclaration> declarations_;
  std::vector<LocalLayout> layouts_;
  std::map<std::string, ParameterId> ids_;
  std::vector<Replication> replications_;
  std::vector<ParameterGroup> groups_;
  std::vector<char> unwritten_;  // by parameter: the next to add to its gradient is the first
  Precision precision_;
  Sharding sharding_;
  ShardMap map_;
  std::vector<Storage> storage_;  // per bucket
  int tensor_coordinate_ = 0;
  int pipeline_coordinate_ = 0;
};

}  // namespace fulmen
