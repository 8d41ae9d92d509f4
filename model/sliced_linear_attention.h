// Linear attention over a sequence whose slices lie on several ranks: each computes its own, the states are gathered
// once a pass, and every rank sums those it needs with the right powers of the decay. What travels does not grow with
// the length.
#pragma once

#include "kernels/linear_attention.h"
#include "model/sublayer.h"

namespace fulmen {

// linear_attention_forward of this rank's slice. initial_state [batch, heads, state key width, value width] receives
// the state in front of it, which the backward pass takes as inputs.initial_state. outputs.piece_states, for the
// backward pass, only where nothing overlaps. Collective over context.sequence.ranks.
void sliced_linear_attention_forward(const ModelContext& context, const MicroBatch& micro_batch,
                                     LinearAttentionInputs inputs, LinearAttentionOutputs outputs,
                                     const Tensor& initial_state);

// The outputs once more, bit for bit, from inputs with their initial state: nothing travels.
void sliced_linear_attention_again(const ModelContext& context, LinearAttentionInputs inputs,
                                   const LinearAttentionOutputs& outputs);

// linear_attention_backward of it; inputs with their initial state. Collective, as above.
void sliced_linear_attention_backward(const ModelContext& context, const MicroBatch& micro_batch,
                                      const LinearAttentionInputs& inputs, LinearAttentionGradients gradients);

}  // namespace fulmen
