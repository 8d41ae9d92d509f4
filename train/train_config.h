// The settings of a run: the keys under `data`, `train`, `checkpoint` and `run` of a configuration.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace fulmen {

struct DataConfig {
  std::string path;
  std::int64_t sequence_length = 2048;
  bool shuffle = true;
  bool reset_state_at_documents = true;
};

struct OptimizerConfig {
  std::string kind = "adamw";
  double learning_rate = 3e-4;
  std::vector<double> betas = {0.9, 0.95};
  double epsilon = 1e-8;
  double weight_decay = 0.1;
};

struct LearningRateConfig {
  std::string kind = "cosine";  // constant, linear, cosine, wsd
  std::int64_t warmup_steps = 0;
  double minimum = 0.0;
  std::optional<std::int64_t> decay_steps;  // of wsd; auto: a tenth of the steps
};

struct TrainConfig {
  std::int64_t steps = 0;  // 0 while only `tokens` is given
  std::int64_t tokens = 0;
  std::int64_t global_batch = 0;  // sequences per step
  std::int64_t micro_batch = 0;   // sequences per micro-batch of a data rank
  OptimizerConfig optimizer;
  LearningRateConfig schedule;
  double clip = 1.0;  // 0: no clipping

  // steps, or what `tokens` comes to.
  std::int64_t total_steps(std::int64_t sequence_length) const;
};

struct CheckpointConfig {
  std::int64_t every = 500;  // steps; 0: only at the end
  std::int64_t keep = 3;     // newest checkpoints; 0: all
  bool async = false;
};

struct RunConfig {
  std::string directory = "runs/default";
  std::int64_t seed = 1;
  std::string device = "auto";
  std::optional<std::int64_t> threads;
  std::int64_t log_every = 1;
  bool deterministic = false;
  double timeout = 1800.0;  // seconds that an operation between ranks may take; 0: any
  bool check_collectives = false;
};

}  // namespace fulmen
