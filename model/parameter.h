// The declaration of a parameter: made once, read by initialisation, gradient synchronisation, the clip norm, optimiser
// sharding, checkpoints, import and export.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "framework/random.h"
#include "parallel/placement.h"

namespace fulmen {

// The initial value of one element of a logical tensor, from its global, row-major index: the same on every layout.
using Initializer = std::function<double(const RandomStream& random, std::int64_t index)>;

// A tensor as checkpoints and the released weights name it.
struct LogicalTensor {
  std::string name;
  Shape shape;
  Initializer initializer;
};

// How a parameter's gradient comes about.
enum class GradientForm : std::uint8_t {
  product,  // matrix products in backward_weight; the first of a step overwrites (ParameterStore::first_accumulation)
  sum,      // sums in backward_input, from zero: gains, biases, decays, angles
};

// Properties that the parameters of one flat buffer share.
struct ParameterGroupKey {
  DType narrowest = DType::bf16;  // weights and gradients are this wide or wider, whatever the model's precision
  GradientForm gradient = GradientForm::product;
  bool whole = false;  // also under ZeRO 2 and 3: too few elements for collectives of their own in every layer
  bool weight_decay = true;
  double learning_rate_scale = 1.0;
  std::string clip_group = "default";
  friend bool operator==(const ParameterGroupKey&, const ParameterGroupKey&) = default;
};

// A weight as a layer uses it: a matrix [rows, columns]. It may be fused from several logical tensors, and split over
// the tensor ranks along one dimension. Or a stack of such matrices (experts), each split so, of which the ranks along
// an axis own a contiguous part each. A weight that is no stack can be owned, too (a pool of memory values). Its
// segments are then cut over the axis that it is owned along, instead of over tensor.
struct ParameterDeclaration {
  std::string name;  // of the fused weight; the logical tensor's name when there is just one
  std::vector<LogicalTensor> tensors;
  std::int64_t items = 0;         // of a stack, whose logical tensors are [items, rows, columns]; 0: a single matrix
  int dimension = 0;              // that the segments run along: 0 rows, 1 columns, of each item
  std::vector<Segment> segments;  // of each item; a stack has no more than one along columns
  bool transposed = false;        // products read the transpose: the matrix is [in, out], as GPT-2 keeps it
  bool padded = false;            // split into equal parts, the last parts padded with zeros that never learn
  std::array<AxisPlacement, mesh_axes> placement{};  // by Axis
  std::vector<int> shared_stages;  // pipeline coordinates that hold a copy, when placed as shared; the first owns it
  ParameterGroupKey group;
  std::int64_t layer = -1;  // that alone uses it; -1: used at more than one place of a stage

  AxisPlacement along(Axis axis) const { return placement[static_cast<std::size_t>(axis)]; }
  void place(Axis axis, AxisPlacement how) { placement[static_cast<std::size_t>(axis)] = how; }
  // The axes inside data that it is owned along. Its replicas, over which gradients are summed and ZeRO shards, are the
  // ranks along data and sequence with the same place along them.
  std::vector<Axis> owned_along() const;
  // The axis that the segments are cut over, if any: tensor, or the owner axis of an owned weight which is no stack.
  std::optional<Axis> cut_along() const;
  const LogicalTensor& tensor(const std::string& tensor_name) const;
};

// A weight with one logical tensor [rows, columns]. Split along `dimension` over the tensor ranks in `units`, or, with
// units = 0, replicated. Placed replicated_partial over data and sequence, owned along pipeline.
ParameterDeclaration declare_weight(const std::string& name, Shape shape, Initializer initializer, int dimension,
                                    std::int64_t units);
// A parameter [n], or a small tensor, whose gradient is summed in backward_input; not decayed. Split along its first
// dimension over the tensor ranks in `units`, or, with units = 0, replicated.
ParameterDeclaration declare_vector(const std::string& name, Shape shape, Initializer initializer, std::int64_t units);
// A weight whose logical tensor stacks `parts` matrices [rows, columns], each split over the tensor ranks in `units`.
ParameterDeclaration declare_fused(const std::string& name, std::int64_t parts, std::int64_t rows, std::int64_t columns,
                                   std::int64_t units, const Initializer& initializer);
// Weights [rows, columns] that read the same input, as one weight: a segment for each, end to end. Each is split by
// rows in `units` of its own; `copies` as Segment says.
struct JoinedWeight {
  std::string name;
  std::int64_t rows = 0, units = 0;
  bool copies = false;
};
ParameterDeclaration declare_joined(const std::string& name, const std::vector<JoinedWeight>& weights,
                                    std::int64_t columns, const Initializer& initializer);
// Two weights that read the same input, as one weight: two logical tensors [rows, columns], each split by rows. Named
// after both: a.x.weight and a.y.weight are a.x_y.
ParameterDeclaration declare_pair(const std::string& first, const std::string& second, const Shape& shape,
                                  const Initializer& initializer);
// Experts: a stack [items, rows, columns] that the ranks along `owner` own. Each item is split as declare_weight says.
ParameterDeclaration declare_stack(const std::string& name, Shape shape, Initializer initializer, int dimension,
                                   std::int64_t units, Axis owner);
// A pool [rows, columns] whose columns (dimension 1) or rows (0) the ranks along `owner` own, in equal parts.
// Replicated over tensor. Its gradient is summed in backward_input.
ParameterDeclaration declare_pool(const std::string& name, Shape shape, Initializer initializer, int dimension,
                                  Axis owner);
// The placement that weights have over data, sequence and pipeline, with `tensor` along the tensor axis.
std::array<AxisPlacement, mesh_axes> weight_placement(AxisPlacement tensor);

// Normal(0, std), each element from the logical tensor's own random stream.
Initializer normal_initializer(double std);

// The part of a declared weight that one rank holds.
struct LocalSegment {
  std::size_t segment = 0;       // in the declaration
  IndexRange indices;            // of the segment, along the split dimension, in rows or columns
  std::int64_t local_begin = 0;  // where it starts in the local matrix, or in each item
  std::vector<int> holders;      // coordinates along tensor that hold copies of it; one: no other rank has it
  bool first_copy = true;        // the copy that counts in sums over ranks and is written to checkpoints
};
struct LocalLayout {
  // Rows of the matrix that products read.
  std::int64_t outputs(bool transposed) const { return transposed ? columns : rows; }

  IndexRange items{0, 1};  // of a stack
  std::int64_t rows = 0;   // of all its items
  std::int64_t columns = 0;
  std::vector<LocalSegment> segments;  // of each item

  std::int64_t elements() const { return rows * columns; }
  std::int64_t item_rows() const { return items.size() == 0 ? 0 : rows / items.size(); }
};
// Throws UserError where the ranks of an axis do not divide what they own, or the heads that they hold copies of.
LocalLayout local_layout(const ParameterDeclaration& declaration, const Mesh& mesh);
// For another rank of the mesh.
LocalLayout local_layout(const ParameterDeclaration& declaration, const Mesh& mesh, int rank);

}  // namespace fulmen
