// Softmax attention as its definition has it: every pair of tokens, double precision. The oracle of the blocked form.
#pragma once

#include <cstdint>
#include <vector>

namespace fulmen::reference {

// Contiguous, row-major. As SoftmaxAttentionInputs, whose fields these are.
struct SoftmaxAttentionProblem {
  std::int64_t batch = 0, length = 0, key_length = 0, heads = 0, kv_heads = 0, key_width = 0, value_width = 0;
  double scale = 1.0;
  std::vector<double> query = {}, key = {}, value = {};
  std::vector<std::int64_t> query_positions = {}, key_positions = {}, first_visible = {};  // none may be empty
};

struct SoftmaxAttentionResult {
  std::vector<double> output;       // [batch, length, heads, value width]
  std::vector<double> log_sum_exp;  // [batch, heads, length]
};

SoftmaxAttentionResult softmax_attention_forward(const SoftmaxAttentionProblem& problem);

struct SoftmaxAttentionDerivatives {
  std::vector<double> d_query, d_key, d_value;
};

// The derivatives of a softmax's weights, pair by pair.
SoftmaxAttentionDerivatives softmax_attention_backward(const SoftmaxAttentionProblem& problem,
                                                       const std::vector<double>& d_output);

}  // namespace fulmen::reference
