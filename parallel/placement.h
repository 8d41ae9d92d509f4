// How a parameter lies on the mesh. Declared once with the parameter; synchronisation, the clip norm, checkpoints,
// import and export all read it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "framework/tensor.h"
#include "parallel/mesh.h"

namespace fulmen {

// What happens to a parameter along one axis of the mesh.
enum class AxisPlacement : std::uint8_t {
  split,               // each rank holds its part
  replicated,          // equal copies with equal gradients
  replicated_partial,  // equal copies, each rank's gradient a part of the sum
  owned,               // each rank holds something of its own (layers along pipeline; experts along data)
  shared,  // equal copies on some ranks along the axis, each one's gradient a part of the sum (tied embedding)
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
};

}  // namespace fulmen
