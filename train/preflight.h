// Checks of a run before its first step, rather than in it or at its first save.
#pragma once

#include "train/memory_estimate.h"
#include "train/trainer.h"

namespace fulmen {

// Bytes of one checkpoint of a training run: the weights that the optimiser updates, and the moments.
double checkpoint_bytes(const ModelConfig& model, const Precision& precision);

// That the model, its optimiser and its activations fit the memory that the ranks' hosts or GPUs have left, as
// train/memory_estimate.h counts them. Allocates none of it, and is done within seconds: what could not fit in any
// layout is refused before the layout is looked at. Throws UserError on all ranks, with what takes how much.
// Collective.
void require_memory(const ModelConfig& model, const ModelRunnerOptions& options, Mesh& mesh, Device device,
                    MemoryUse use = MemoryUse::training);

// That the run's checkpoints find their place. Throws UserError on all ranks. Collective over the mesh.
void require_place(const TrainerOptions& options, Mesh& mesh);

}  // namespace fulmen
