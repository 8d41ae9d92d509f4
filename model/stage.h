// A contiguous run of layers on one pipeline rank, with the embedding before the first layer and the head after the
// last.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "model/branch_executor.h"
#include "model/language_head.h"
#include "model/model_config.h"
#include "model/token_embedding.h"
#include "model/token_split.h"

namespace fulmen {

struct StageRange {
  std::int64_t first_layer = 0;
  std::int64_t end_layer = 0;
  bool embedding = true;
  bool head = true;
};

// All of a model on one stage.
StageRange whole_model(const ModelConfig& config);

// The stages of a pipeline, ranks x chunks of them. They are `layers_per_stage` when given (its sum must be the
// layers), else as even as can be, the earlier stages larger. Throws UserError naming parallel.stages or
// parallel.pipeline.
std::vector<StageRange> split_stages(std::int64_t layers, int pipeline_stages,
                                     const std::optional<std::vector<std::int64_t>>& layers_per_stage);

std::vector<ParameterDeclaration> declare_stage(const ModelConfig& config, const StageRange& range,
                                                int pipeline_stages);
// Calls visit for each parameter of the whole model, and holds a layer's declarations at a time.
void for_each_declaration(const ModelConfig& config, const std::function<void(const ParameterDeclaration&)>& visit);

class Stage {
 public:
  Stage(const ModelConfig& config, const StageRange& range, const ModelContext& context,
        Recompute recompute = Recompute::none);

  // Allocates for up to `slots` micro-batches of this shape in flight.
  void prepare(const BatchShape& shape, int slots);

  // The data that crosses a border of stages is the residual stream [rows(), hidden]. After it come the carried tensors
  // that cross there (model/carried.h), end to end. It has entering_elements() in front of the stage,
  // leaving_elements() behind it. input: null where the embedding is; output alike, written for the next stage, null
  // where the head is. With `gradient` a backward pass will follow.
  void forward(int slot, const MicroBatch& micro_batch, const Tensor& input, const Tensor& output, bool gradient);

  // d_output: the gradient of output, null where the head is; it must live until the slot's backward_weight. d_input
  // alike, written for the stage before, null where the embedding is. Results that the forward pass did not keep are
  // made again layer by layer.
  void backward_input(int slot, const MicroBatch& micro_batch, const Tensor& d_output, const Tensor& d_input);
  void backward_weight(int slot);
  // Both halves, branch by branch, in less memory.
  void backward(int slot, const MicroBatch& micro_batch, const Tensor& d_output, const Tensor& d_input);

  // Sum of the losses since it was last set to zero: fp64 [1] in device memory. Stays zero where there is no head.
  Tensor loss_sum() const { return loss_sum_; }

  // Sum of what the layers themselves add to what is trained on, since it was last set to zero: fp64 [1].
  Tensor layer_loss_sum() const { return layer_loss_sum_; }

  // Recurrent decoding on a stage that has both embedding and head, prepared for length 1. Advances the states by one
  // token a row and writes the logits [batch, vocabulary columns]. `length`: the most tokens that a text may have.
  std::vector<StateSpec> states(std::int64_t batch, std::int64_t length) const;
  void decode(const MicroBatch& micro_batch, std::span<const Tensor> states, const Tensor& logits);
  // The logits of the slot's last forward, without a second pass through the layers: [tokens, vocabulary columns].
  void logits(int slot, const Tensor& out) const;

  // Rows of what enters and leaves the stage, once prepared: all tokens, or this rank's part of them
  // (model/token_split.h).
  std::int64_t rows() const { return residual_rows(context_, shape_.tokens()); }
  std::int64_t entering_elements() const { return rows() * hidden_ + carried_.entering_elements(); }
  std::int64_t leaving_elements() const { return rows() * hidden_ + carried_.leaving_elements(); }
  const StageRange& range() const { return range_; }
  const std::optional<LanguageHead>& head() const { return head_; }
  // The hidden state that enters a layer of this stage, as of the slot's last forward: [rows(), hidden].
  Tensor layer_input(int slot, std::int64_t layer) const;

 private:
  using Layer = std::vector<std::unique_ptr<BranchExecutor>>;
  struct Kept {  // memory that outlives backward_input, until backward_weight
    Arena arena;
    std::unique_ptr<Arena::Frame> frame;
    int slot = -1;  // -1: free
  };
  Kept& keep(int slot);
  // The parts of what crosses a border, null of null: the residual stream, and the carried tensors.
  Tensor residual_of(const Tensor& crossing) const;
  Tensor carried_of(const Tensor& crossing) const;
  Tensor take_activation(Arena& arena) const;
  ResidualStream take_stream(Arena& arena, const Tensor& residual) const;
  TokenGather gathered_activation(Arena& arena) const;  // whose whole may be asked for
  std::int64_t number_of(std::size_t layer) const { return range_.first_layer + static_cast<std::int64_t>(layer); }
  // Gives memory to what is kept of a layer's stash and notes the rest.
  void prepare_layer(int slot, std::size_t layer);
  // Takes scratch memory for what is not kept of a layer's stash.
  void place_dropped(int slot, std::size_t layer);
  // The same, and makes it again for backward_input.
  void restore(int slot, std::size_t layer, const MicroBatch& micro_batch);

  StageRange range_;
  const ModelContext& context_;
  Recompute recompute_;
  std::int64_t hidden_;
  bool norms_go_on_ = false;  // as the residual of some branch
  BatchShape shape_;
  std::optional<TokenEmbedding> embedding_;
  CarriedTensors carried_;
  std::vector<Layer> layers_;
  std::optional<LanguageHead> head_;
  std::vector<OwnedTensor> stash_;                              // what is kept, of all slots and layers
  std::vector<std::vector<std::vector<StashTensor>>> dropped_;  // what is not, by slot and layer
  OwnedTensor loss_sum_, layer_loss_sum_;
  std::vector<std::unique_ptr<Kept>> kept_;
};

}  // namespace fulmen
