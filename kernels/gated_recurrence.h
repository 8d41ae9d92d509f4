// Recurrences whose decay each token chooses: Mamba-2, gated linear attention, RWKV-6, gated delta nets, Kimi delta
// attention. With a_t = exp(log_decay_t), a number per head or per channel of the keys:
//   S_t = diag(a_t) S_(t-1) + k_t^T w_t,   w_t = v_t, or by the delta rule beta_t (v_t - k_t diag(a_t) S_(t-1)),
//   o_t = scale q_t S_t, or with a bonus u scale q_t (S_(t-1) + diag(u) k_t^T v_t).
// Formulas of the chunk form: arXiv 2312.06635 (decay per channel), 2412.06464 (gated delta rule), 2404.05892 (bonus).
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"
#include "kernels/linear_attention_states.h"

namespace fulmen {

struct GatedRecurrenceInputs {
  // [batch, length, key heads, key width], unit inner stride, any other strides. Each head of keys serves as many
  // neighbouring heads of values, as grouped heads do.
  Tensor query, key;
  Tensor value;  // [batch, length, heads, value width], strided alike; null: all zero
  // Accumulation dtype, <= 0 (-infinity is allowed), contiguous: [batch, length, heads], or per channel of the keys
  // [batch, length, heads, key width].
  Tensor log_decay;
  Tensor beta;       // accumulation dtype [batch, length, heads], contiguous; null: no delta rule
  Tensor bonus;      // accumulation dtype [heads, key width], contiguous; null: none. Not with the delta rule.
  double scale = 1;  // of the queries
  // As in LinearAttentionInputs: where documents begin. The state starts anew at each, but a row's first segment starts
  // from initial_state.
  Tensor segments;
  // Accumulation dtype [batch, heads, key width, value width], unit inner stride; null: zero.
  Tensor initial_state;

  bool per_channel() const { return log_decay.rank() == 4; }
  bool delta() const { return !beta.is_null(); }
};

struct GatedRecurrenceOutputs {
  Tensor output;             // [batch, length, heads, value width], unit inner stride
  Tensor final_state;        // as initial_state, after each row's last token; or null
  bool accumulates = false;  // adds to the output
};

void gated_recurrence_forward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                              const GatedRecurrenceOutputs& outputs);
FULMEN_BACKENDS(gated_recurrence_forward);

struct GatedRecurrenceGradients {
  Tensor d_output;       // [batch, length, heads, value width]; null: zero
  Tensor d_final_state;  // as the final state; null: zero
  // Written, strided as the inputs may be; d_value null where value is. Without d_query only d_initial_state is wanted.
  Tensor d_query, d_key, d_value;
  Tensor d_log_decay, d_beta;  // written, as log_decay and beta
  Tensor d_bonus;              // as bonus, added to
  Tensor d_initial_state;      // written; or null
  bool accumulates = false;    // adds to all of them but d_initial_state
};

// Computes the states again.
void gated_recurrence_backward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                               const GatedRecurrenceGradients& gradients);
FULMEN_BACKENDS(gated_recurrence_backward);

// The recurrent form: one token for a batch (length 1; segments and initial_state are ignored). state, accumulation
// dtype [batch, heads, key width, value width], contiguous, is read and advanced.
void gated_recurrence_step(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& state,
                           const Tensor& output);
FULMEN_BACKENDS(gated_recurrence_step);

// Over slices of a sequence, what a slice does to the state in front of it is a pair: S -> transition S + own. A
// summary [batch, heads, key width, value width + columns] holds `own` and, behind it, the transition: the diagonal in
// a single column, or with the delta rule, where it is a matrix, as many columns as the keys have.
std::int64_t gated_recurrence_transition_columns(const GatedRecurrenceInputs& inputs);

// `own` is the final state from zero. Reads neither queries nor initial_state; value may not be null. The row's last
// segment has the transition.
void gated_recurrence_summary(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& summary);
FULMEN_BACKENDS(gated_recurrence_summary);

// The state in front of `slice` from the summaries of the slices before it; or the gradient of the state behind it from
// the slices after it, whose `own` holds the gradients of their initial states:
//   before: S = T_s S + own_s, s rising;   after: S = T_s^T S + own_s, s falling
// over the slices on that side that begin less than reach tokens away. `out` gets the transition of `slice`.
struct GatedSlices {
  Tensor summaries;  // [slices, batch, heads, key width, value width + columns], accumulation dtype, contiguous
  std::int64_t value_width = 0;
  Tensor bounds;  // int64 [slices + 1]: slice i holds tokens [bounds[i], bounds[i + 1]) of every sample
  int slice = 0;
};
// reach int64 [batch]: how far a row's document goes on to that side. out: one summary, contiguous, written.
void combine_gated_slices(const Execution& execution, const GatedSlices& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out);
FULMEN_BACKENDS(combine_gated_slices);

}  // namespace fulmen
