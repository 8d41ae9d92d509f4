// Linear attention as its definition has it: every pair of tokens, an explicit mask, double precision. The oracle of
// the chunk form and of the recurrent form.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/activation.h"

namespace fulmen::reference {

// Contiguous, row-major. As LinearAttentionInputs, whose fields these are.
struct LinearAttentionProblem {
  std::int64_t batch = 0, length = 0, heads = 0, key_width = 0, value_width = 0;
  std::vector<double> query, key, value;  // [batch, length, heads, width]
  Activation query_key_activation = Activation::silu;
  Activation value_activation = Activation::none;
  std::vector<double> slope;            // [heads]
  std::vector<double> theta;            // [heads, key width], or empty
  std::vector<std::int64_t> positions;  // [batch, length]
  std::vector<std::int64_t> segments;   // offsets into batch * length
  std::vector<double> initial_state;    // [batch, heads, state width, value width], or empty

  std::int64_t state_width() const { return theta.empty() ? key_width : 2 * key_width; }
};

struct LinearAttentionResult {
  std::vector<double> output;       // [batch, length, heads, value width]
  std::vector<double> square_sums;  // [batch * length, heads]
  std::vector<double> final_state;  // [batch, heads, state width, value width]
};

// O = [(Q K^T) .* M] V, M_ts = decay^(t - s) for s <= t of the same document (arXiv 2307.14995, equation 8).
LinearAttentionResult linear_attention_forward(const LinearAttentionProblem& problem);

struct LinearAttentionDerivatives {
  std::vector<double> d_query, d_key, d_value, d_theta, d_initial_state;
};

// The transposed products. d_final_state may be empty.
LinearAttentionDerivatives linear_attention_backward(const LinearAttentionProblem& problem,
                                                     const std::vector<double>& d_output,
                                                     const std::vector<double>& d_final_state);

}  // namespace fulmen::reference
