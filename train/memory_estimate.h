// The memory of a training run, known before there is any. A planner asks this for layouts that nobody started.
#pragma once

#include "framework/memory.h"
#include "train/model_runner.h"
#include "train/train_config.h"

namespace fulmen {

enum class MemoryUse : std::uint8_t { training, evaluation };

// The memory of one rank of a mesh: the ledger of a run's own model, optimiser and one step of them. They are made and
// run where memory is only planned (framework/memory.h). A function of its arguments: no other rank is asked, so that
// zero_group must be a number or `all`. A GPU must be there, since its kernels are asked; what they hold depends on it.
// Throws UserError as ModelRunner does.
//
// Experts are taken to be chosen equally often: ranks that share them may need more for their tokens.
//
// On a GPU the scratch memory of products is counted. The scratch memory of other kernels is not, nor the memory of
// CUDA, cuBLAS and NCCL themselves.
MemoryLedger estimate_memory(const ModelConfig& model, const ModelRunnerOptions& options, const MeshShape& shape,
                             int rank, Device device, MemoryUse use = MemoryUse::training);

// Bytes that all ranks of a run hold together at the least, whatever its layout. That is each parameter's weight,
// gradient and state once. For training it is also the input of each layer, for one micro-batch on each data rank.
struct LeastMemory {
  double weights = 0.0, gradients = 0.0, optimizer = 0.0, activations = 0.0;
  double total() const { return weights + gradients + optimizer + activations; }
};
LeastMemory least_memory(const ModelConfig& model, const ModelRunnerOptions& options, const MeshShape& shape,
                         MemoryUse use = MemoryUse::training);

// Bytes of host memory on each rank, in no ledger: the batches of a step and of reading ahead, and their lists of
// instructions.
double batch_memory(const ModelRunnerOptions& options, const MeshShape& shape);

}  // namespace fulmen
