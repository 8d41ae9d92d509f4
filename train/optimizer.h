// AdamW over the flat buffers of a parameter store, or over this rank's part of them, with clipping by the global norm.
// Where the weights are narrow it updates a wider copy and rounds.
#pragma once

#include <string>
#include <vector>

#include "model/parameter_store.h"
#include "parallel/mesh.h"
#include "parallel/shard_groups.h"
#include "train/master_weights.h"
#include "train/train_config.h"

namespace fulmen {

class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, double clip, ParameterStore& parameters, Mesh& mesh,
            const Execution& execution);

  // One update from the (already reduced) gradients; `updates_before` counts the updates already done. Collective over
  // the ranks that hold the model between them. Each clip group is clipped by its own norm. Leaves the norm of the
  // whole gradient before clipping in gradient_norm().
  void step(double learning_rate, std::int64_t updates_before);
  // The global norm of the gradient, collectively, without an update.
  double compute_gradient_norm();
  // Of the last step. Waits for the device.
  double gradient_norm() const;

  // What is updated, and saved.
  MasterWeights& master() { return master_; }
  const MasterWeights& master() const { return master_; }
  // First and second moments of this rank's parts.
  const FlatParts& exp_avg() const { return exp_avg_; }
  const FlatParts& exp_avg_sq() const { return exp_avg_sq_; }

 private:
  // One call of the kernel: parts that lie one behind the other in each of these.
  struct Run {
    std::size_t group;
    Tensor master, gradients, exp_avg, exp_avg_sq, rounded;
  };
  void make_runs();
  void reduce_square_sums();
  std::size_t clip_group(std::size_t group) const;
  Tensor scalars(std::size_t clip_group) const;

  OptimizerConfig config_;
  double clip_;
  ParameterStore& parameters_;
  ShardGroups shard_groups_;
  Communicator& model_ranks_;  // tensor x pipeline: with the shards they hold every parameter once
  Execution execution_;
  MasterWeights master_;
  std::vector<OwnedTensor> moments_;  // first and second of each parameter group
  FlatParts exp_avg_, exp_avg_sq_;
  std::vector<Run> runs_;
  std::vector<std::string> clip_groups_;  // of the whole model, in an order that all ranks have
  std::vector<FlatParts> counted_;        // per clip group: the gradients that this rank adds to its norm
  OwnedTensor scalars_;                   // fp64 [clip groups, adamw_scalars]
  OwnedTensor square_sums_, norms_;       // fp64 [clip groups]
};

}  // namespace fulmen
