// AdamW over the flat buffers of a parameter store, with clipping by the global norm. Where the weights are narrow it
// updates a wider copy and rounds.
#pragma once

#include <vector>

#include "model/parameter_store.h"
#include "parallel/mesh.h"
#include "train/master_weights.h"
#include "train/train_config.h"

namespace fulmen {

class Optimizer {
 public:
  Optimizer(const OptimizerConfig& config, double clip, ParameterStore& parameters, Mesh& mesh, const Execution& execution);

  // One update from the (already reduced) gradients; `updates_before` counts the updates already done. Collective over the
  // model's ranks. Leaves the norm of the gradient before clipping in gradient_norm().
  void step(double learning_rate, std::int64_t updates_before);
  // The global norm of the gradient, collectively, without an update.
  double compute_gradient_norm();
  // Of the last step. Waits for the device.
  double gradient_norm() const;

  // What is updated, and saved.
  MasterWeights& master() { return master_; }
  const MasterWeights& master() const { return master_; }
  // First and second moments, flat, one per parameter group.
  std::vector<Tensor> exp_avg() const;
  std::vector<Tensor> exp_avg_sq() const;

 private:
  struct Moments {
    OwnedTensor exp_avg, exp_avg_sq;
  };
  void reduce_square_sum();

  OptimizerConfig config_;
  double clip_;
  ParameterStore& parameters_;
  Communicator& model_ranks_;          // tensor x pipeline: between them they hold every parameter once
  Execution execution_;
  MasterWeights master_;
  std::vector<Moments> moments_;       // per parameter group
  OwnedTensor scalars_;                // fp64 [adamw_scalars]
  OwnedTensor square_sum_, norm_;      // fp64 [1]
};

}  // namespace fulmen
