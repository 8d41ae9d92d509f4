// Runs a branch on this rank, in any layout: its norm, products that tensor ranks share, operations, and crossings of
// the borders of a slice. It also does recomputation, and orders the two halves of backward so that communication of
// the tensor ranks overlaps with products. This is the only place that knows all of these together.
#pragma once

#include <array>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "model/branch.h"
#include "model/carried.h"
#include "model/model_context.h"
#include "model/rank_crossing.h"
#include "model/token_split.h"

namespace fulmen {

class BranchExecutor {
 public:
  BranchExecutor(Branch branch, const ModelContext& context);

  // Makes room for `slots` stashes. layer_loss: fp64 [1], to which the branch adds its losses. carried: the stage's,
  // with as many slots.
  void prepare(int slots, const Tensor& layer_loss, const CarriedTensors& carried);
  // The tensors of a slot's stash for micro-batches of this shape, the sum first. Valid until the next prepare.
  std::vector<StashTensor> stash(int slot, const BatchShape& shape);

  // Reads the stream, and sets it to what the next branch receives.
  void forward(int slot, const MicroBatch& micro_batch, ResidualStream& stream);
  // The sum that the last forward began with.
  Tensor sum(int slot) const { return slot_of(slot).sum; }
  // The forward pass again, to make what full recomputation did not keep. The stream's residual may be the slot's own
  // sum. Without memory for the output the pass ends when the stash is whole.
  void forward_again(int slot, const MicroBatch& micro_batch, ResidualStream& stream);
  // Makes what Recompute::selective does not keep (Keep::all) from what it keeps.
  void restore(int slot, const MicroBatch& micro_batch);

  // Whether the residual goes on with the branch's norm.
  bool goes_on_with_norm() const { return branch_.junction.from_norm; }

  // d_out is the gradient of the sum behind the branch. d_in is the gradient of the branch's own sum, which is started
  // once it is written. Memory for backward_weight is taken from `kept`; d_out must live until then. d_in may not alias
  // d_out. backward_weight only adds matrix products to gradients.
  void backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in);
  void backward_weight(int slot);
  // Both halves; what travels between the tensor ranks may do so behind the second.
  void backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in);

  // Recurrent decoding: what one token hands to the next, all operations' states in their order.
  std::vector<StateSpec> states(std::int64_t batch, std::int64_t length) const;
  std::size_t state_count() const {
    return std::accumulate(state_counts_.begin(), state_counts_.end(), std::size_t{0});
  }
  // forward for one token of each row (length 1), reading and advancing the states.
  void decode(const MicroBatch& micro_batch, std::span<const Tensor> states, ResidualStream& stream);

 private:
  struct Slot {
    int number = 0;
    Tensor sum, statistics;                     // [residual rows, hidden], [residual rows]
    std::vector<Tensor> values;                 // by value, null for what has no memory of its own
    std::vector<std::vector<Tensor>> kept;      // by node: what its operation keeps,
    std::vector<std::vector<Tensor>> crossing;  // and what its crossing does
    // From backward_input to backward_weight:
    std::vector<Tensor> gradients;  // by value
    Tensor d_out;                   // [tokens, hidden]
    Tensor normed;                  // [residual rows, hidden]; holds its gradient for a while
    Tensor whole_normed;            // [tokens, hidden], where operations read the normed tokens
    std::int64_t tokens = 0;
  };
  // Tensors of a node, gathered without allocating.
  class TensorList {
   public:
    void add(const Tensor& tensor);
    operator Tensors() const { return {tensors_.data(), size_}; }  // NOLINT: it is one

   private:
    std::array<Tensor, 12> tensors_;
    std::size_t size_ = 0;
  };
  enum class Run : std::uint8_t { first, again, restoring };

  Slot& slot_of(int slot) { return slots_[static_cast<std::size_t>(slot)]; }
  const Slot& slot_of(int slot) const { return slots_[static_cast<std::size_t>(slot)]; }
  const ValueSpec& spec(Value value) const { return branch_.values[static_cast<std::size_t>(value.id)]; }
  std::size_t index(Value value) const { return static_cast<std::size_t>(value.id); }
  std::unique_ptr<Crossing> crossing_of(const Node& node) const;
  bool reads_normed(const Node& node) const;
  DType dtype(PortType type) const;
  std::vector<std::int64_t> local_widths(const std::vector<Value>& of) const;
  void resolve_widths();
  void find_reruns();

  Tensor tensor_of(const Slot& slot, Value value) const;
  Tensor gradient_of(const Slot& slot, Value value) const;
  Tensor view(const Tensor& product, const ValueSpec& view) const;
  TensorList inputs_of(const Slot& slot, const Node& node) const;
  TensorList outputs_of(const Slot& slot, const Node& node) const;

  void run_forward(Run run, int slot, const MicroBatch& micro_batch, ResidualStream& stream,
                   std::span<const Tensor> states);
  void run_node(Run run, Slot& slot, std::size_t node, const MicroBatch& micro_batch, const Tensor& normed,
                const Tensor& branch_out, std::span<const Tensor>& states);
  void take_scratch(Slot& slot, const Node& node, Run run);
  void project(Slot& slot, const Node& node, const Tensor& normed);
  void apply(Slot& slot, std::size_t node, const MicroBatch& micro_batch, Run run);
  void step(Slot& slot, std::size_t node, const MicroBatch& micro_batch, std::span<const Tensor> states);
  void carry(Slot& slot, const Node& node);
  void add_loss(Slot& slot, std::size_t node, const MicroBatch& micro_batch, Run run);
  void contract(Slot& slot, const Node& node, const Tensor& branch_out);
  void deliver(Slot& slot, const Node& node, const Tensor& branch_out);

  // A backward pass under way.
  struct Differentiation {
    Slot& slot;
    const MicroBatch& micro_batch;
    TokenSum& d_normed;
    bool normed_written = false;
    std::vector<bool> written = {};  // by value
  };
  // Where a node's gradient of an input goes: to its place if it is the first, else to scratch memory that is added.
  struct Destination {
    Tensor written, place;
  };
  class Destinations;

  void begin_backward(Slot& slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out);
  void take_gradients(Slot& slot, Arena& arena, bool for_products);
  void differentiate(Differentiation& pass);
  void add_gradient(Differentiation& pass, Value value, const Tensor& gradient);
  void differentiate_product(Differentiation& pass, const Node& node);
  void differentiate_operation(Differentiation& pass, std::size_t node);
  void differentiate_loss(Differentiation& pass, std::size_t node);
  Destination destination(Differentiation& pass, Value value);
  void settle(const Destination& destination) const;
  void differentiate_normed(Differentiation& pass, bool beside);
  void finish_input(Differentiation& pass, TokenGather& d_out, TokenGather& d_in, const Tensor& normed);
  Tensor product_input(const Slot& slot, Value value) const;
  void add_output_gradients(const Slot& slot);
  void add_input_gradients(const Slot& slot, const Execution& execution, const Tensor& normed);

  Branch branch_;
  const ModelContext& context_;
  ResidualNorm norm_;
  std::vector<ParameterId> ids_;                      // by parameter of the branch
  std::vector<std::int64_t> widths_;                  // of values, on this rank
  std::vector<OwnedTensor> constants_;                // by value
  std::vector<std::unique_ptr<Crossing>> crossings_;  // by node
  std::vector<bool> reruns_;                          // by node: runs again to restore
  std::vector<bool> read_again_;                      // by value: a scratch result that a node reads which runs again
  bool normed_again_ = false;                         // some of those read the normed tokens
  std::vector<std::size_t> state_counts_;             // by node
  int outer_ = -1;                                    // node
  bool normed_read_ = false;                          // by operations, not by outer alone
  std::size_t last_kept_node_ = 0;                    // the last that writes something kept
  Tensor layer_loss_;
  const CarriedTensors* carried_ = nullptr;
  std::vector<Slot> slots_;
};

}  // namespace fulmen
