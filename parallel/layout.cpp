// From the configured layout to the mesh.
#include "parallel/layout.h"

namespace fulmen {

MeshShape mesh_shape(const LayoutConfig& layout, int ranks) {
  MeshShape shape;
  shape.tensor = static_cast<int>(layout.tensor);
  shape.sequence = static_cast<int>(layout.sequence);
  shape.pipeline = static_cast<int>(layout.pipeline);
  const std::int64_t others = layout.tensor * layout.sequence * layout.pipeline;
  if (!layout.data && ranks % others != 0)
    throw UserError("parallel",
                    fmt::format("tensor {} x sequence {} x pipeline {} = {} does not divide the {} ranks of this job",
                                layout.tensor, layout.sequence, layout.pipeline, others, ranks),
                    "start a multiple of that many ranks, or change the layout");
  const std::int64_t data = layout.data ? *layout.data : ranks / others;
  if (data * others != ranks)
    throw UserError("parallel",
                    fmt::format("data {} x tensor {} x sequence {} x pipeline {} = {} ranks, but this job has {}", data,
                                layout.tensor, layout.sequence, layout.pipeline, data * others, ranks),
                    fmt::format("start {} ranks (mpirun -n {}), or change the layout", data * others, data * others));
  shape.data = static_cast<int>(data);
  return shape;
}

}  // namespace fulmen
