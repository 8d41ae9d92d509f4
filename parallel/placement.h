// How a parameter lies on the mesh. Declared once with the parameter; synchronisation, the clip norm, checkpoints,
// import and export all read it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/tensor.h"
#include "parallel/mesh.h"

namespace fulmen {

// The placement of a parameter along one axis of the mesh. Along an axis inside data it is replicated, which data's own
// placement then governs, or owned.
enum class AxisPlacement : std::uint8_t {
  split,               // each rank holds its part
  replicated,          // equal copies with equal gradients
  replicated_partial,  // equal copies, each rank's gradient a part of the sum
  with_tokens,         // along tensor: equal copies, gradients equal too unless the ranks hold parts of the tokens
                       // (parallel.tensor_sequence_split), and then partial (a norm's gain)
  owned,   // each rank holds something of its own (layers along pipeline; experts along expert, a pool's columns
           // along memory) and sums nothing with the others
  shared,  // equal copies on some ranks along the axis, each copy's gradient a part of the sum (tied embedding)
};

// A half-open range of indices.
struct IndexRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
  friend bool operator==(const IndexRange&, const IndexRange&) = default;
};

// Part `index` of `count` units cut into `parts` contiguous parts whose sizes differ by at most one, the larger first.
IndexRange partition(std::int64_t count, int parts, int index);

// One named run of rows (or columns) of a fused weight. The fused q|k|v|u matrix has four, each cut by heads; l1|l2 has
// two, which belong to different logical tensors.
struct Segment {
  std::string tensor;              // the logical tensor: its name in checkpoints
  std::int64_t tensor_offset = 0;  // first index of the segment in the logical tensor, along the split dimension
  std::int64_t extent = 0;         // global extent along the split dimension
  std::int64_t units = 1;          // heads, or single rows: a unit is never cut
  // For heads that may be fewer than the ranks (keys and values of grouped queries). Each rank then holds a copy of its
  // unit, neighbours the same unit. One number divides the other. Along rows only.
  bool copies = false;
};

// The units of a segment that a rank holds.
struct HeldUnits {
  IndexRange units;
  std::vector<int>
      holders;  // ranks with a copy of them, this rank among them; just this rank where there are no copies
};
// Throws UserError when the segment has copies and neither its units nor the ranks divide the other.
HeldUnits held_units(const Segment& segment, int ranks, int rank);

}  // namespace fulmen
