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
  // the ranks that hold the model between them. Each clip group is clipped by its own norm, each group's learning rate
  // is scaled. Leaves the norm of the whole gradient before clipping in gradient_norm().
  void step(double learning_rate, std::int64_t updates_before);
  // The global norm of the gradient, collectively, without an update.
  double compute_gradient_norm();
  // The norm at the last step: of the whole gradient, or of one clip group, 0 where no parameter is in it. Waits for
  // the device.
  double gradient_norm() const;
  double gradient_norm(const std::string& clip_group) const;

  // The values that are updated, and saved.
  MasterWeights& master() { return master_; }
  const MasterWeights& master() const { return master_; }
  // First and second moments of this rank's parts.
  const FlatParts& exp_avg() const { return exp_avg_; }
  const FlatParts& exp_avg_sq() const { return exp_avg_sq_; }

 private:
  // One call of the kernel: parts that are neighbours in each of these.
  struct Run {
    std::size_t group;
    Tensor master, gradients, exp_avg, exp_avg_sq, rounded;
  };
  void make_runs();
  void reduce_square_sums();
  std::size_t clip_group(std::size_t group) const;
  std::vector<double> norms() const;
  Tensor square_sum(std::size_t replication, std::size_t clip_group) const;
  Tensor scalars(std::size_t clip_group) const;

  OptimizerConfig config_;
  double clip_;
  ParameterStore& parameters_;
  // By replication: the ranks that hold its parameters once between them, but for tensor and pipeline. First those that
  // share shards, then owners (null: no axis owns them).
  struct Holders {
    Communicator* shards;
    Communicator* owners;
  };
  std::vector<Holders> holders_;
  Communicator& model_ranks_;  // tensor x pipeline
  Execution execution_;
  MasterWeights master_;
  std::vector<OwnedTensor> moments_;  // first and second of each parameter group
  FlatParts exp_avg_, exp_avg_sq_;
  std::vector<Run> runs_;
  std::vector<std::string> clip_groups_;         // of the whole model, in an order that all ranks have
  std::vector<std::vector<FlatParts>> counted_;  // by replication and clip group: what this rank adds to its norm
  OwnedTensor scalars_;                          // fp64 [clip groups, adamw_scalars]
  OwnedTensor square_sums_;                      // fp64 [replications, clip groups]; the sum of all in the first row
  OwnedTensor norms_;                            // fp64 [clip groups]
};

}  // namespace fulmen
