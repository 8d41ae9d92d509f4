// Summing gradients over ranks.
#include "train/gradient_sync.h"

namespace fulmen {

GradientSync::GradientSync(ParameterStore& parameters, Mesh& mesh, const Execution& execution)
    : parameters_(parameters),
      execution_(execution),
      replicas_(mesh.along({Axis::sequence, Axis::data})),
      tensor_(mesh.along(Axis::tensor)) {
  for (ParameterId id = 0; id < parameters.size(); ++id) {
    const ParameterDeclaration& declaration = parameters.declaration(id);
    FULMEN_CHECK(declaration.along(Axis::data) == AxisPlacement::replicated_partial &&
                     declaration.along(Axis::sequence) == AxisPlacement::replicated_partial,
                 "{}: only partial gradients along data and sequence are summed", declaration.name);
    if (declaration.along(Axis::tensor) == AxisPlacement::replicated_partial && tensor_.size() > 1)
      tensor_partial_.push_back(id);
    if (declaration.along(Axis::pipeline) == AxisPlacement::shared)
      shared_.push_back({id, &mesh.among(Axis::pipeline, declaration.shared_stages)});
  }
}

void GradientSync::reduce_shared() {
  const ProfileScope scope = ProfileScope::communication(execution_.profiler, "gradient communication");
  for (const Shared& shared : shared_)
    shared.stages->all_reduce(parameters_.gradient(shared.id), ReduceOp::sum, execution_.stream);
}

void GradientSync::reduce_gradients() {
  const ProfileScope scope = ProfileScope::communication(execution_.profiler, "gradient communication");
  for (const ParameterId id : tensor_partial_)
    tensor_.all_reduce(parameters_.gradient(id), ReduceOp::sum, execution_.stream);
  if (replicas_.size() == 1) return;
  for (const ParameterGroup& group : parameters_.groups())
    replicas_.all_reduce(group.gradients, ReduceOp::sum, execution_.stream);
}

}  // namespace fulmen
