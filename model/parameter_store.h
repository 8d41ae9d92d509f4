// The parameters of one rank: views into flat buffers, one set per parameter group.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "framework/execution.h"
#include "model/parameter.h"

namespace fulmen {

// The model's arithmetic: fp32 or fp64 throughout, or on a GPU bf16 with fp32 gradients.
struct Precision {
  DType parameters = DType::fp32;   // weights and activations
  DType gradients = DType::fp32;
  // What the optimiser updates: the weights themselves, or an fp32 copy of narrower ones.
  DType master() const { return accumulation_dtype(parameters); }
};

using ParameterId = std::size_t;

// A run of elements of a group's flat buffers.
struct FlatRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

// The parameters of one group, laid end to end in declaration order, each starting at a multiple of 64 elements; the gaps
// are zero and stay zero.
struct ParameterGroup {
  ParameterGroupKey key;
  std::int64_t elements = 0;
  OwnedTensor weights;                // flat, fp64 when the key is wide, else Precision::parameters
  OwnedTensor gradients;              // flat, fp64 when the key is wide, else Precision::gradients
  std::vector<FlatRange> counted;     // what this rank contributes to the norm: no copy that another rank counts
};

// A piece of a logical tensor in one of the flat buffers.
struct ParameterPiece {
  std::string tensor;
  Shape global_shape;
  std::vector<std::int64_t> offset;   // of the piece in the logical tensor
  Tensor memory;                      // of the logical tensor's rank; may be strided
  bool owned = false;                 // this rank writes it to checkpoints; other ranks' copies are equal
};

class ParameterStore {
 public:
  // Sharing and splitting follow this rank's place in the mesh. Weights and gradients start as zero.
  ParameterStore(std::vector<ParameterDeclaration> declarations, const Mesh& mesh, Precision precision,
                 const Execution& execution);

  // Throws InternalError for a name that was not declared.
  ParameterId id(const std::string& name) const;
  std::size_t size() const { return declarations_.size(); }
  const ParameterDeclaration& declaration(ParameterId id) const { return declarations_[id]; }
  const LocalLayout& layout(ParameterId id) const { return layouts_[id]; }
  const Precision& precision() const { return precision_; }

  // Local matrices [rows, columns]. Layers ask at each use.
  Tensor weight(ParameterId id) const;
  Tensor gradient(ParameterId id) const;

  std::vector<ParameterGroup>& groups() { return groups_; }
  const std::vector<ParameterGroup>& groups() const { return groups_; }

  // Every element from its declaration's initialiser: a pure function of (seed, tensor name, global index), drawn in fp64
  // and rounded to what holds it; bf16 by way of fp32, so that it equals a rounded fp32 copy.
  void initialize(std::uint64_t seed, const Execution& execution) { initialize(seed, execution, flat_weights()); }
  // The same into `flat`, one flat tensor per group: another copy of the weights.
  void initialize(std::uint64_t seed, const Execution& execution, const std::vector<Tensor>& flat) const;
  // Gradients count as zero from here on. Those of matrices are not written: what comes first, as first_accumulation says,
  // must overwrite what is left of the step before. A step forms the gradient of every matrix.
  void zero_gradients(const Execution& execution);
  // Whether nothing was added to this gradient since zero_gradients. True once.
  bool first_accumulation(ParameterId id) { return std::exchange(unwritten_[id], false); }

  // The local pieces of every logical tensor as they lie in `flat`, one flat tensor per group (weights, gradients or
  // moments alike). Padding belongs to no piece. Ownership is dealt out over equal copies along data and sequence.
  std::vector<ParameterPiece> pieces(const std::vector<Tensor>& flat) const;
  std::vector<Tensor> flat_weights() const;
  std::vector<Tensor> flat_gradients() const;

  // Whether this rank's copy of a parameter counts in sums over ranks: exactly one of equal copies along tensor and
  // pipeline does.
  bool counted(ParameterId id) const;

 private:
  struct Place {
    std::size_t group = 0;
    std::int64_t offset = 0;
  };
  Tensor view(ParameterId id, const Tensor& flat) const;

  std::vector<ParameterDeclaration> declarations_;
  std::vector<LocalLayout> layouts_;
  std::vector<Place> places_;
  std::map<std::string, ParameterId> ids_;
  std::vector<ParameterGroup> groups_;
  std::vector<char> unwritten_;   // by parameter: the next to add to its gradient is the first
  Precision precision_;
  int tensor_coordinate_ = 0;
  int pipeline_coordinate_ = 0;
  int replica_ = 0;     // this rank's number among the equal copies along data and sequence
  int replicas_ = 1;
};

}  // namespace fulmen
