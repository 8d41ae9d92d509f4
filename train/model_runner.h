// The model on this rank: its parameters, its stages of the pipeline, and what turns batches into losses and gradients.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "data/batch.h"
#include "model/stage.h"
#include "parallel/layout.h"
#include "parallel/schedule_checker.h"
#include "train/gradient_sync.h"
#include "train/pipeline_executor.h"
#include "train/stream_timer.h"
#include "train/weight_gather.h"

namespace fulmen {

struct ModelRunnerOptions {
  LayoutConfig layout;
  Precision precision;
  BatchShape micro_batch;  // of whole samples; sequence ranks hold slices of them
  int micro_batches = 1;   // per step and data rank
};

// Over the whole global batch, equal on all ranks.
struct StepLoss {
  double loss_nats = 0.0;  // mean over the targets that count; NaN where none does
  double targets = 0.0;
  double layer_loss = 0.0;       // what layers themselves add to what is trained on (routers), the mean over samples
  double waiting_seconds = 0.0;  // of the last pass through the pipeline, for its transfers: the mean of the ranks
};

// A step of the pipeline as it could be: the passes as long as they were, transfers for nothing.
struct IdealStep {
  double seconds = 0.0;  // of the schedule, and of reductions and the update after it
  double bubble = 0.0;   // idle share of the ranks' time in the schedule
};

class ModelRunner {
 public:
  // Makes the pipeline's schedule and checks it before anything runs. Throws UserError for a layout that does not fit
  // the model (heads, layers) or the ranks (zero_group).
  ModelRunner(const ModelConfig& config, const ModelRunnerOptions& options, Mesh& mesh, const Execution& execution);
  ModelRunner(const ModelRunner&) = delete;
  ModelRunner& operator=(const ModelRunner&) = delete;

  ParameterStore& parameters() { return parameters_; }
  const ParameterStore& parameters() const { return parameters_; }
  // The last of this rank's model chunks.
  Stage& stage() { return *stages_.back(); }
  PipelineExecutor& executor() { return executor_; }
  const ScheduleReport& schedule_report() const { return report_; }
  int micro_batches() const { return options_.micro_batches; }
  bool layers_lose() const { return layers_lose_; }  // some layer of the model adds to the loss
  const Execution& execution() const { return execution_; }

  // One step's gradient from this data rank's micro-batches: sets the gradients to zero, runs the schedule and reduces
  // them. Then calls update (null for none; not where no target counts) and gathers the changed weights. Collective.
  StepLoss accumulate(std::span<const Batch> batches, const std::function<void()>& update);

  // Around a change of this rank's parts of the weights that is not an update (a checkpoint, an initialisation). All
  // that still reads them ends before. After it, collectively, the others' parts are gathered.
  void before_weights_change() { weights_.wait(); }
  void weights_changed() { weights_.weights_changed(); }

  // The sum of losses and of target weights of this data rank's batches, forward only. Any number of them, the same on
  // all ranks of a pipeline, and on all data ranks where ZeRO 3 gathers weights. Call reduce_loss for the mean over
  // all.
  void evaluate(std::span<const Batch> batches);
  // Mean loss since the last reset, over all ranks. Collective.
  StepLoss reduce_loss();
  void reset_loss();

  // Seconds of the last accumulate() that reductions and `update` took: the host's, or on a GPU the stream's.
  double reduce_seconds() { return reduce_timer_.seconds(); }
  double update_seconds() { return update_timer_.seconds(); }

  // For the last accumulate(), its passes being timed (executor().time_passes()). Collective.
  IdealStep ideal_step();

 private:
  ModelRunnerOptions options_;
  Mesh& mesh_;
  Execution execution_;
  std::vector<StageRange> ranges_;  // of the whole model's stages
  ScheduleCosts costs_;             // of their passes, estimated: all ranks make the same lists of them
  std::vector<InstructionList> schedule_;
  ScheduleReport report_;
  std::map<int, InstructionList> evaluation_lists_;  // by number of micro-batches
  ParameterStore parameters_;
  IndexRange slice_;  // of every sample, that this rank holds
  OwnedTensor slice_bounds_;
  ModelContext context_;
  std::vector<std::unique_ptr<Stage>> stages_;  // this rank's model chunks
  bool layers_lose_ = false;                    // some layer of the model adds to the loss
  GradientSync sync_;
  WeightGather weights_;
  PipelineExecutor executor_;
  OwnedTensor loss_scale_;  // fp64 [1]
  double targets_ = 0.0;    // of this data rank, since the last reset
  StreamTimer reduce_timer_, update_timer_;
};

}  // namespace fulmen
