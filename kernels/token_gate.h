// Numbers that each token chooses for a recurrence: how far its state decays, and how much it writes. A product of the
// token, with a bias, goes through a function whose result is in the accumulation dtype.
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// With u = x + bias, and softplus(u) = log(1 + exp(u)):
enum class GateForm : std::uint8_t {
  sigmoid,            // 1 / (1 + exp(-u))                    rates of the delta rule
  softplus,           // softplus(u)                          steps of Mamba-2
  log_sigmoid,        // -softplus(-u) / divisor              log decays of gated linear attention
  negative_softplus,  // -exp(log_rate) softplus(u)           log decays of Mamba-2, gated delta nets, Kimi delta
  negative_exponent,  // -exp(u)                              log decays of RWKV-6
};

struct TokenGate {
  GateForm form = GateForm::sigmoid;
  double divisor = 1.0;
  Tensor bias = {};      // accumulation dtype [width], or null for zero
  Tensor log_rate = {};  // accumulation dtype [groups], each of width / groups neighbouring columns; negative_softplus
};

// x [tokens, width], unit inner stride; y [tokens, width], accumulation dtype, contiguous.
void token_gate_forward(const Execution& execution, const TokenGate& gate, const Tensor& x, const Tensor& y);
FULMEN_BACKENDS(token_gate_forward);

struct TokenGateGradients {
  Tensor d_x;         // as x, written; may be x
  Tensor d_bias;      // as the bias, added to
  Tensor d_log_rate;  // as log_rate, added to
};

// d_y as y.
void token_gate_backward(const Execution& execution, const TokenGate& gate, const Tensor& d_y, const Tensor& x,
                         const TokenGateGradients& gradients);
FULMEN_BACKENDS(token_gate_backward);

}  // namespace fulmen
