// Checks of a run before its first step, rather than at its first save.
#pragma once

#include "train/trainer.h"

namespace fulmen {

// Bytes of one checkpoint of a training run: the weights that the optimiser updates, and the moments.
double checkpoint_bytes(const ModelConfig& model, const Precision& precision);

// That the run's checkpoints find their place. Throws UserError on all ranks. Collective over the mesh.
void check_before_training(const TrainerOptions& options, Mesh& mesh);

}  // namespace fulmen
