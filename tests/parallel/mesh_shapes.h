// Shapes of meshes that the tests walk.
#pragma once

#include <vector>

#include "parallel/mesh.h"

namespace fulmen {

// All shapes of at most `most` ranks.
inline std::vector<MeshShape> mesh_shapes(int most) {
  std::vector<MeshShape> shapes;
  for (int tensor = 1; tensor <= most; ++tensor)
    for (int sequence = 1; tensor * sequence <= most; ++sequence)
      for (int data = 1; tensor * sequence * data <= most; ++data)
        for (int pipeline = 1; tensor * sequence * data * pipeline <= most; ++pipeline)
          shapes.push_back({.tensor = tensor, .sequence = sequence, .data = data, .pipeline = pipeline});
  return shapes;
}

// All subsets of the axes, the empty set first.
inline std::vector<std::vector<Axis>> axis_subsets() {
  std::vector<std::vector<Axis>> subsets;
  for (int bits = 0; bits < 1 << mesh_axes; ++bits) {
    std::vector<Axis>& subset = subsets.emplace_back();
    for (int axis = 0; axis < mesh_axes; ++axis)
      if (bits & 1 << axis) subset.push_back(static_cast<Axis>(axis));
  }
  return subsets;
}

}  // namespace fulmen
