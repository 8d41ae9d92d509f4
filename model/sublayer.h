// The contract between a stage and the residual branches it is made of. A sublayer receives the running sum and the
// last branch's output separately, so that their addition is fused with its norm:
//   sum = residual + branch;   branch_out = f(norm(sum))
// Backward comes in two halves: backward_input makes the gradient of `sum` (and of everything that is not a matrix
// product), backward_weight only adds matrix products to weight gradients. What they need is in a stash per slot, whose
// memory the stage provides: a sublayer declares its tensors and finds them in place.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "framework/execution.h"
#include "kernels/embedding.h"
#include "model/parameter_store.h"
#include "model/stash.h"
#include "model/token_split.h"
#include "parallel/communicator.h"

namespace fulmen {

// Told what a stage is about to do with a layer's parameters, so that weights can be gathered just before they are used
// and gradients reduced as soon as they are whole. Null ones are not called. Layers are numbered over the whole model.
struct LayerHooks {
  std::function<void(std::int64_t layer)> before_forward;  // reads weights
  std::function<void(std::int64_t layer)>
      before_backward_input;  // reads weights; also before recomputing the layer for it
  std::function<void(std::int64_t layer)> before_backward_weight;  // adds to gradients of matrices
  std::function<void(std::int64_t layer)> after_backward_weight;   // both halves are done for this micro-batch

  static void call(const std::function<void(std::int64_t)>& hook, std::int64_t layer) {
    if (hook) hook(layer);
  }
};

// How every sample is shared out over ranks, each holding a slice of it (sequence parallelism).
struct SequenceSlices {
  Communicator* ranks = nullptr;  // in the order of the slices; null: this rank holds whole samples
  Tensor bounds;                  // int64 [ranks + 1]: slice i holds tokens [bounds[i], bounds[i + 1])
  bool overlap = false;           // states travel behind the computation of what does not need them
};

// What a sublayer stands on at run time. Belongs to the run and outlives the model.
struct ModelContext {
  Execution execution;
  Communicator* tensor = nullptr;  // the tensor group
  ParameterStore* parameters = nullptr;
  SequenceSlices sequence = {};
  LayerHooks hooks = {};
  bool split_tokens = false;              // the residual stream lies in parts on the tensor ranks (model/token_split.h)
  bool overlap_tensor = false;            // communication over the tensor group goes on beside products
  int communication_multiprocessors = 0;  // of a GPU, that it has then

  // For products with communication of the tensor group beside them.
  Execution beside_communication() const {
    Execution beside = execution;
    if (overlap_tensor) beside.multiprocessors_left = communication_multiprocessors;
    return beside;
  }

  // Sums equal-shaped partial results over the tensor group.
  void sum_over_tensor(const Tensor& tensor_value) const {
    if (tensor->size() == 1) return;
    const ProfileScope scope = ProfileScope::communication(execution.profiler, "tensor communication");
    tensor->all_reduce(tensor_value, ReduceOp::sum, execution.stream);
  }
};

// residual_norm_forward of a sublayer: sum = residual + branch, or residual itself where there is no branch; without
// one, sum may alias residual.
void add_and_normalize(const ModelContext& context, const Tensor& residual, const Tensor& branch, double epsilon,
                       const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms);

// Adds a linear layer's d_y^T x to its weight's gradient, or writes it where it is the first of the step.
void add_weight_gradient(const ModelContext& context, const Execution& execution, ParameterId weight, const Tensor& d_y,
                         const Tensor& x);

struct BatchShape {
  std::int64_t batch = 0;
  std::int64_t length = 0;
  std::int64_t tokens() const { return batch * length; }
};

// A micro-batch in device memory: this rank's local slice of each sample.
struct MicroBatch {
  BatchShape shape;
  Tensor tokens;                       // int32 [tokens]
  Tensor targets;                      // int32 [tokens]
  Tensor weights;                      // fp32 [tokens]: 0 masks a target
  Tensor positions;                    // int64 [batch, length], in the whole sample
  Tensor segments;                     // int64 [segments + 1]: where documents (and rows) start, and the end
  Tensor tokens_before, tokens_after;  // int64 [batch]: how far a row's first and last document go on outside the slice
  TokenOrder order;                    // of `tokens`
  Tensor loss_scale;                   // fp64 [1]: 1 / targets that count in the global batch
};

class Sublayer {
 public:
  virtual ~Sublayer() = default;

  // Makes room for `slots` stashes.
  virtual void prepare(int slots) = 0;
  // The tensors of a slot's stash for micro-batches of this shape, the sum first. Valid until the next prepare.
  virtual std::vector<StashTensor> stash(int slot, const BatchShape& shape) = 0;

  // residual, branch, branch_out [residual rows, hidden], a row for every token or those of this rank's part of them
  // (model/token_split.h); branch may be null (the first sublayer) and branch_out may alias it.
  // Without a branch, residual may be the slot's sum itself: the pass is then run again from what was kept. branch_out
  // may be null: the pass ends when the stash is whole.
  virtual void forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
                       const Tensor& branch_out) = 0;
  // residual + branch of the last forward: the residual that the next sublayer receives.
  virtual Tensor sum(int slot) const = 0;
  // Makes what Recompute::selective does not keep (Keep::all) from what it keeps.
  virtual void restore(int slot, const MicroBatch& micro_batch) { (void)slot, (void)micro_batch; }

  // d_out is the gradient of both this sublayer's sum (past the branch) and its branch output; d_in that of residual
  // and branch, which is started once it is written. What backward_weight will need is taken from `kept`; d_out must
  // live until then. d_in may not alias d_out.
  virtual void backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                              TokenGather& d_in) = 0;
  virtual void backward_weight(int slot) = 0;
  // Both halves; what travels between the tensor ranks may do so behind the second.
  virtual void backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out,
                        TokenGather& d_in) = 0;

  // Recurrent decoding: the state that one token hands to the next, empty when there is none.
  virtual Shape state_shape(std::int64_t batch) const {
    (void)batch;
    return {};
  }
  // forward for one token of each row (length 1), reading and advancing the state.
  virtual void decode(int slot, const MicroBatch& micro_batch, const Tensor& state, const Tensor& residual,
                      const Tensor& branch, const Tensor& branch_out) {
    (void)state;
    forward(slot, micro_batch, residual, branch, branch_out);
  }
};

}  // namespace fulmen
