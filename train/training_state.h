// The state in a checkpoint of a training run beyond its parameters, and saving and restoring all of it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/model_config.h"
#include "train/model_runner.h"
#include "train/optimizer.h"

namespace fulmen {

struct TrainingProgress {
  std::int64_t step = 0;     // updates done
  std::int64_t samples = 0;  // consumed
  std::int64_t tokens = 0;   // consumed
};

// The corpus that a run is trained on, as its checkpoints describe it.
struct TrainingCorpus {
  std::string identity = {};  // empty where it is not known
  TokenizerRecord tokenizer = {};
};

// Saves under root/step-N, N of eight digits: the master weights, whatever the model computes in, and the moments.
// Collective.
std::filesystem::path save_training_state(const std::filesystem::path& root, const ModelConfig& model,
                                          const std::string& configuration, const TrainingProgress& progress,
                                          const ModelRunner& runner, const Optimizer& optimizer,
                                          const std::vector<std::filesystem::path>& extra_files, Communicator& world,
                                          const TrainingCorpus& corpus = {});

// Sets the master weights, and the model's from them, to their initial values. Collective.
void initialize_training_state(std::uint64_t seed, ModelRunner& runner, Optimizer& optimizer);

// Restores the master weights (and the model's, rounded from them) and, past step 0 (an imported checkpoint has none),
// moments. Collective: checksums are verified first.
TrainingProgress load_training_state(const CheckpointReader& checkpoint, const ModelConfig& model, ModelRunner& runner,
                                     Optimizer& optimizer, Communicator& world);

}  // namespace fulmen
