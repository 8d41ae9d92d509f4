// RMSNorm of each head by itself, fused with its gain and its gate. It follows retention, gated linear attention and
// the delta rules. Mamba-2 has it before its last product. It is also the norm of queries and keys.
#pragma once

#include <cstdint>

#include "framework/execution.h"
#include "kernels/activation.h"
#include "kernels/backends.h"

namespace fulmen {

// Where the gate multiplies. a = act(gate), or 1 without a gate; n(u) = u / sqrt(mean over the group of u^2 + eps).
enum class GatePlace : std::uint8_t {
  after_norm,   // y = n(x) gain a      RetNet, GLA, Kimi; gated delta net
  before_norm,  // y = n(x a) gain      Mamba-2
};

struct HeadNorm {
  std::int64_t group_width = 0;  // columns that are normed together
  double epsilon = 1e-6;
  Tensor gain = {};           // [group_width] (all groups share it), [width], or null for 1; the activations' dtype
  bool zero_centred = false;  // the factor is 1 + gain
  Tensor gate = {};           // [tokens, width], or null for none
  Activation gate_activation = Activation::silu;  // none, silu or sigmoid
  GatePlace gate_place = GatePlace::after_norm;
};

// x, gate, y [tokens, width], any row stride, width a multiple of group_width. y may stand where x or the gate stood.
// Writes inverse_rms [tokens, width / group_width], contiguous, accumulation dtype, for the backward pass.
void head_norm_forward(const Execution& execution, const HeadNorm& norm, const Tensor& x, const Tensor& y,
                       const Tensor& inverse_rms);
FULMEN_BACKENDS(head_norm_forward);

struct HeadNormGradients {
  Tensor d_x;     // [tokens, width], written
  Tensor d_gate;  // [tokens, width], written; null without a gate
  Tensor d_gain;  // as the gain, accumulation dtype, added to; null without a gain
  Tensor y;       // the forward pass's result, written again for the layer after it; null: not wanted
};

// The gradients of what head_norm_forward computed. d_x, d_gate and y may have any row stride, and lie in the place of
// d_y, x or the gate. d_gain is summed in an order that no number of threads changes.
void head_norm_backward(const Execution& execution, const HeadNorm& norm, const Tensor& d_y, const Tensor& x,
                        const Tensor& inverse_rms, const HeadNormGradients& gradients);
FULMEN_BACKENDS(head_norm_backward);

}  // namespace fulmen
