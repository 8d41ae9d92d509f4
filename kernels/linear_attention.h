// Linear attention with decay, the kernel family of TransNormerLLM, RetNet and their relatives:
//   S_t = decay * S_(t-1) + k_t^T v_t,   o_t = q_t S_t
// in chunk form for training (Lightning Attention-2, arXiv 2401.04658, algorithms 1 and 2) and in recurrent form for
// decoding. SiLU on q and k and LRPE are folded in. q, k and v are read where the fused projection left them. The
// gradients are written where its backward pass reads them. No scale, no denominator.
#pragma once

#include "framework/execution.h"
#include "kernels/activation.h"
#include "kernels/backends.h"

namespace fulmen {

// How the state decays. Only a constant per head is built; per token and head (Mamba-2) and per channel (RWKV-6, GLA)
// belong to the family.
enum class DecayKind : std::uint8_t { per_head };

struct LinearAttentionInputs {
  // [batch, length, heads, width], unit inner stride, any other strides; before their activations. q and k share a
  // width (key width), v has its own (value width).
  Tensor query, key, value;
  Activation query_key_activation = Activation::silu;
  Activation value_activation = Activation::none;
  DecayKind decay = DecayKind::per_head;
  Tensor slope;  // fp64 [heads], >= 0, of this rank's heads: decay = exp(-slope)
  // LRPE (TransNormerLLM, section 3.1.1): phi(x)_m = [x cos(m theta), x sin(m theta)] on activated q and k, which
  // doubles the state's key width. theta fp64 [heads, key width], or null for none. positions int64 [batch, length],
  // from 0 and below 2^32. Angles are formed in fp64 or in fixed point, and reduced modulo 2 pi.
  Tensor theta, positions;
  // Documents in a row: int64 [segments + 1] offsets into batch * length, increasing, the first 0, the last batch *
  // length. Every multiple of length is among them. The state starts anew at each, except that a row's first segment
  // starts from initial_state.
  Tensor segments;
  Tensor initial_state;  // [batch, heads, state key width, value width] in the accumulation dtype, or null for zero
  Tensor piece_states =
      {};  // as linear_attention_forward left them, for linear_attention_backward, which only reads them; or null
};

// A path may cut long rows of few heads into pieces that it computes side by side. The states between them take a pass
// of their own over keys and values, and in reverse a pass over queries and output gradients. Tensors of this many
// elements, in the accumulation dtype, spare a later function of the same tensors that pass. 0: nothing is cut, none
// may be given.
struct LinearAttentionSize {
  std::int64_t batch = 0, length = 0, heads = 0, key_width = 0, value_width = 0;
  DType dtype = DType::fp32;
  Activation query_key_activation = Activation::silu;
  bool lrpe = false;
};
LinearAttentionSize size_of(const LinearAttentionInputs& inputs);
std::int64_t linear_attention_piece_elements(const Execution& execution, const LinearAttentionSize& size);

struct LinearAttentionOutputs {
  Tensor output;                  // [batch, length, heads, value width], unit inner stride
  Tensor square_sums;             // [batch * length, heads], accumulation dtype: sum of output^2 per head; or null
  Tensor final_state;             // as initial_state, after each row's last token; or null
  Tensor piece_states = {};       // for the backward pass; or null
  bool own_piece_states = false;  // piece_states holds what linear_attention_final_state left there for the same inputs
};

// The chunk form.
void linear_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                              const LinearAttentionOutputs& outputs);
FULMEN_BACKENDS(linear_attention_forward);

struct LinearAttentionGradients {
  Tensor d_output;                 // [batch, length, heads, value width]
  Tensor d_final_state;            // or null for zero
  Tensor d_query, d_key, d_value;  // written; strided as the inputs may be. They may not alias the inputs.
  Tensor d_theta;                  // fp64 [heads, key width], added to; null when theta is
  Tensor d_initial_state;          // written, or null
  Tensor piece_gradients =
      {};  // what linear_attention_initial_state_gradient left for the same tensors, or null; overwritten
};

// Recomputes the states that the forward pass had; only those between pieces may have been kept.
void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients);
FULMEN_BACKENDS(linear_attention_backward);

// The recurrent form: one token for a batch (length 1, segments ignored). state [batch, heads, state key width, value
// width] is decayed, added to and read; inputs.initial_state is ignored.
void linear_attention_step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
                           const LinearAttentionOutputs& outputs);
FULMEN_BACKENDS(linear_attention_step);

}  // namespace fulmen
