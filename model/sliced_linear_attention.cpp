// Linear attention over a sequence whose slices lie on several ranks.
#include "model/sliced_linear_attention.h"

#include <utility>

#include "kernels/linear_attention_states.h"

namespace fulmen {

namespace {

// Room for what the pieces of this slice pass on; null where it is not cut.
Tensor take_pieces(const Execution& execution, const LinearAttentionInputs& inputs) {
  const std::int64_t elements = linear_attention_piece_elements(execution, size_of(inputs));
  if (elements == 0) return {};
  return execution.scratch->take(accumulation_dtype(inputs.key.dtype()), {elements});
}

// The states of all slices: this rank's own is written into its place, then gathered.
class GatheredStates {
 public:
  GatheredStates(const ModelContext& context, const LinearAttentionInputs& inputs)
      : context_(context), slope_(inputs.slope) {
    const std::int64_t ranks = context.sequence.ranks->size();
    const std::int64_t keys = inputs.key.size(3) * (inputs.theta ? 2 : 1);
    states_ =
        context.execution.scratch->take(accumulation_dtype(inputs.key.dtype()),
                                        {ranks, inputs.key.size(0), inputs.key.size(2), keys, inputs.value.size(3)});
  }

  Tensor own() const { return states_.select(0, context_.sequence.ranks->rank()); }

  void gather() const {
    const ProfileScope scope = ProfileScope::communication(context_.execution.profiler, "sequence communication");
    context_.sequence.ranks->all_gather(own(), states_, context_.execution.stream);
  }
  [[nodiscard]] Pending start_gather() const {
    return context_.sequence.ranks->start_all_gather(own(), states_, context_.execution.stream);
  }
  void wait(Pending& gathering) const {
    const ProfileScope scope = ProfileScope::communication(context_.execution.profiler, "sequence communication");
    gathering.wait(context_.execution.stream);
  }

  // Once gathered.
  void combine(SliceSide side, const Tensor& reach, const Tensor& out) const {
    combine_slice_states(context_.execution,
                         {states_, slope_, context_.sequence.bounds, context_.sequence.ranks->rank()}, side, reach,
                         out);
  }

 private:
  const ModelContext& context_;
  Tensor slope_, states_;
};

}  // namespace

void sliced_linear_attention_forward(const ModelContext& context, const MicroBatch& micro_batch,
                                     LinearAttentionInputs inputs, LinearAttentionOutputs outputs,
                                     const Tensor& initial_state) {
  const Execution& execution = context.execution;
  const Arena::Frame frame(*execution.scratch);
  const GatheredStates states(context, inputs);
  inputs.initial_state = Tensor();
  if (outputs.piece_states.is_null()) outputs.piece_states = take_pieces(execution, inputs);
  linear_attention_final_state(execution, inputs, states.own(), outputs.piece_states);
  outputs.own_piece_states = !outputs.piece_states.is_null();
  if (!context.sequence.overlap) {
    states.gather();
    states.combine(SliceSide::before, micro_batch.tokens_before, initial_state);
    inputs.initial_state = initial_state;
    linear_attention_forward(execution, inputs, outputs);
    return;
  }
  // Everything but what the state in front of the slice adds is computed while the states travel.
  Pending gathering = states.start_gather();
  linear_attention_forward(execution, inputs, outputs);
  states.wait(gathering);
  states.combine(SliceSide::before, micro_batch.tokens_before, initial_state);
  inputs.initial_state = initial_state;
  linear_attention_add_initial_state(execution, inputs, outputs);
}

void sliced_linear_attention_again(const ModelContext& context, LinearAttentionInputs inputs,
                                   const LinearAttentionOutputs& outputs) {
  if (!context.sequence.overlap) return linear_attention_forward(context.execution, inputs, outputs);
  const Tensor initial_state = std::exchange(inputs.initial_state, Tensor());
  linear_attention_forward(context.execution, inputs, outputs);
  inputs.initial_state = initial_state;
  linear_attention_add_initial_state(context.execution, inputs, outputs);
}

void sliced_linear_attention_backward(const ModelContext& context, const MicroBatch& micro_batch,
                                      const LinearAttentionInputs& inputs, LinearAttentionGradients gradients) {
  const Execution& execution = context.execution;
  const Arena::Frame frame(*execution.scratch);
  const GatheredStates states(context, inputs);
  gradients.piece_gradients = take_pieces(execution, inputs);
  linear_attention_initial_state_gradient(execution, inputs, gradients.d_output, states.own(),
                                          gradients.piece_gradients);
  const Tensor d_final_state = execution.scratch->take(states.own().dtype(), states.own().shape());
  if (!context.sequence.overlap) {
    states.gather();
    states.combine(SliceSide::after, micro_batch.tokens_after, d_final_state);
    gradients.d_final_state = d_final_state;
    linear_attention_backward(execution, inputs, gradients);
    return;
  }
  Pending gathering = states.start_gather();
  linear_attention_backward(execution, inputs, gradients);
  states.wait(gathering);
  states.combine(SliceSide::after, micro_batch.tokens_after, d_final_state);
  gradients.d_final_state = d_final_state;
  linear_attention_add_final_state_gradient(execution, inputs, gradients);
}

}  // namespace fulmen
