// Disk before a run begins.
#include "train/preflight.h"

#include <algorithm>

#include "checkpoint/checkpoint.h"
#include "checkpoint/place.h"
#include "model/stage.h"

namespace fulmen {

double checkpoint_bytes(const ModelConfig& model, const Precision& precision) {
  double bytes = 0.0;
  for (const ParameterDeclaration& declaration : declare_stage(model, whole_model(model), 1)) {
    const std::size_t master = std::max(size_of(precision.master()), size_of(declaration.group.narrowest));
    for (const LogicalTensor& tensor : declaration.tensors)
      bytes += 3.0 * static_cast<double>(master) * static_cast<double>(elements_of(tensor.shape));  // and two moments
  }
  return bytes;
}

void check_before_training(const TrainerOptions& options, Mesh& mesh) {
  const std::int64_t first = options.resume ? CheckpointReader(*options.resume).description().step : 0;
  const std::int64_t steps = options.train.total_steps(options.data.sequence_length);
  const std::int64_t left = std::max<std::int64_t>(steps - first, 0);
  const std::int64_t every = options.checkpoint.every > 0 ? options.checkpoint.every : std::max<std::int64_t>(left, 1);
  CheckpointDemand demand;
  demand.bytes = checkpoint_bytes(*options.model, options.precision);
  demand.saves = left == 0 ? 0 : (left - 1) / every + 1;
  demand.keep = options.checkpoint.keep;
  require_place_for_checkpoints(std::filesystem::path(options.run.directory) / "checkpoints", demand, mesh.world());
}

}  // namespace fulmen
