// A training run from its configuration to its last checkpoint.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "data/batch_loader.h"
#include "framework/exit_code.h"
#include "framework/phase_times.h"
#include "model/model_config.h"
#include "parallel/layout.h"
#include "train/model_runner.h"
#include "train/train_config.h"

namespace fulmen {

struct TrainerOptions {
  std::shared_ptr<const ModelConfig> model;
  LayoutConfig layout;
  Precision precision;
  DataConfig data;
  TrainConfig train;
  CheckpointConfig checkpoint;
  RunConfig run;
  std::string configuration;                    // the resolved configuration, YAML, for the checkpoints
  std::optional<std::filesystem::path> resume;  // a checkpoint folder, or nothing for a fresh start
  std::function<void()> weights_are_set;  // called on rank 0 before anything of the run is written, if there is one
  std::function<std::string()> taken_by;  // asked on rank 0: who else has the run folder by now; empty: nobody
  std::function<void()> after_step;       // called on all ranks after each step, if there is one
};

// Checks that belong to neither the schema nor the model. Data ranks and micro-batches must divide the batch. The
// model's vocabulary must not be smaller than the corpus's. Throws UserError.
void check_training(const TrainerOptions& options, const MeshShape& shape);

// How a run's options reach the model runner and the loader of this rank.
ModelRunnerOptions runner_options(const TrainerOptions& options, const MeshShape& shape);
BatchLoaderOptions loader_options(const TrainerOptions& options, const Mesh& mesh, std::int64_t first_sample);

// Trains until the last step (ExitCode::done), or until a signal or a file STOP in the run folder asks to stop
// (ExitCode::stopped). A checkpoint is written at the end either way. Throws DivergedError when the loss or the
// gradient's norm is no longer finite: the last checkpoint then stays as it is. The corpus's checksums are verified
// first, its shards dealt over the ranks. `start_up` gets the phases of the start and is then written to the log.
// Collective over the mesh.
ExitCode train(const TrainerOptions& options, Mesh& mesh, const Execution& execution, PhaseTimes& start_up);

}  // namespace fulmen
