// Recurrences with decays that tokens choose, in double precision: token by token, and over all pairs of tokens. The
// oracles of the chunk form and of the recurrent form.
#pragma once

#include <cstdint>
#include <vector>

namespace fulmen::reference {

// Contiguous, row-major. As GatedRecurrenceInputs, whose fields these are.
struct GatedRecurrenceProblem {
  std::int64_t batch = 0, length = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0;
  bool per_channel = false;
  double scale = 1;
  std::vector<double> query, key;      // [batch, length, key heads, key width]
  std::vector<double> value;           // [batch, length, heads, value width]
  std::vector<double> log_decay;       // [batch, length, heads], or [batch, length, heads, key width]
  std::vector<double> beta;            // [batch, length, heads], or empty
  std::vector<double> bonus;           // [heads, key width], or empty
  std::vector<std::int64_t> segments;  // offsets into batch * length
  std::vector<double> initial_state;   // [batch, heads, key width, value width], or empty

  std::int64_t decay_width() const { return per_channel ? key_width : 1; }
};

struct GatedRecurrenceResult {
  std::vector<double> output;       // [batch, length, heads, value width]
  std::vector<double> final_state;  // [batch, heads, key width, value width]
};

GatedRecurrenceResult gated_recurrence_forward(const GatedRecurrenceProblem& problem);

// The outputs by sums over pairs of tokens of a document. Decays between two tokens are exponentials of sums of
// log_decay over the tokens between them; the delta rule solves a triangular system as long as the document.
std::vector<double> gated_recurrence_quadratic(const GatedRecurrenceProblem& problem);

struct GatedRecurrenceDerivatives {
  std::vector<double> d_query, d_key, d_value, d_log_decay, d_beta, d_bonus, d_initial_state;
};

// The adjoint of the recurrence, token by token from the end. d_final_state may be empty.
GatedRecurrenceDerivatives gated_recurrence_backward(const GatedRecurrenceProblem& problem,
                                                     const std::vector<double>& d_output,
                                                     const std::vector<double>& d_final_state);

}  // namespace fulmen::reference
