// Softmax attention, written out.
#include "kernels/reference/softmax_attention.h"

#include <cmath>
#include <limits>

namespace fulmen::reference {
namespace {

// Offsets of a token's head in tensors [batch, length, heads, width].
struct Place {
  std::int64_t row, head;
};

// One query of one head: its weights over all keys of the row, 0 where it sees none.
struct Weights {
  std::vector<double> p;
  double log_sum_exp;
};

std::int64_t query_at(const SoftmaxAttentionProblem& x, Place place, std::int64_t i) {
  return (place.row * x.length + i) * x.heads + place.head;
}

std::int64_t key_at(const SoftmaxAttentionProblem& x, Place place, std::int64_t j) {
  return (place.row * x.key_length + j) * x.kv_heads + place.head / (x.heads / x.kv_heads);
}

Weights weights_of(const SoftmaxAttentionProblem& x, Place place, std::int64_t i) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  std::vector<double> scores(x.key_length, -infinity);
  double maximum = -infinity, sum = 0;
  const std::int64_t at = place.row * x.length + i;
  for (std::int64_t j = 0; j < x.key_length; ++j) {
    const std::int64_t position = x.key_positions[place.row * x.key_length + j];
    if (position < x.first_visible[at] || position > x.query_positions[at]) continue;
    scores[j] = 0;
    for (std::int64_t c = 0; c < x.key_width; ++c)
      scores[j] +=
          x.scale * x.query[query_at(x, place, i) * x.key_width + c] * x.key[key_at(x, place, j) * x.key_width + c];
    maximum = std::fmax(maximum, scores[j]);
  }
  if (maximum == -infinity) return {std::vector<double>(x.key_length, 0.0), -infinity};
  for (double& score : scores) sum += std::exp(score - maximum);
  for (double& score : scores) score = std::exp(score - maximum) / sum;
  return {scores, maximum + std::log(sum)};
}

template <class F>
void for_each_query(const SoftmaxAttentionProblem& x, F&& f) {
  for (std::int64_t row = 0; row < x.batch; ++row)
    for (std::int64_t head = 0; head < x.heads; ++head)
      for (std::int64_t i = 0; i < x.length; ++i) f(Place{row, head}, i);
}

}  // namespace

SoftmaxAttentionResult softmax_attention_forward(const SoftmaxAttentionProblem& x) {
  SoftmaxAttentionResult result{std::vector<double>(x.batch * x.length * x.heads * x.value_width, 0.0),
                                std::vector<double>(x.batch * x.heads * x.length)};
  for_each_query(x, [&](Place place, std::int64_t i) {
    const Weights weights = weights_of(x, place, i);
    result.log_sum_exp[(place.row * x.heads + place.head) * x.length + i] = weights.log_sum_exp;
    for (std::int64_t j = 0; j < x.key_length; ++j)
      for (std::int64_t c = 0; c < x.value_width; ++c)
        result.output[query_at(x, place, i) * x.value_width + c] +=
            weights.p[j] * x.value[key_at(x, place, j) * x.value_width + c];
  });
  return result;
}

SoftmaxAttentionDerivatives softmax_attention_backward(const SoftmaxAttentionProblem& x,
                                                       const std::vector<double>& d_output) {
  SoftmaxAttentionDerivatives result{std::vector<double>(x.query.size(), 0.0), std::vector<double>(x.key.size(), 0.0),
                                     std::vector<double>(x.value.size(), 0.0)};
  for_each_query(x, [&](Place place, std::int64_t i) {
    const Weights weights = weights_of(x, place, i);
    const double* const upstream = &d_output[query_at(x, place, i) * x.value_width];
    std::vector<double> d_p(x.key_length, 0.0);
    double mean = 0;
    for (std::int64_t j = 0; j < x.key_length; ++j) {
      const std::int64_t at = key_at(x, place, j) * x.value_width;
      for (std::int64_t c = 0; c < x.value_width; ++c) {
        d_p[j] += upstream[c] * x.value[at + c];
        result.d_value[at + c] += weights.p[j] * upstream[c];
      }
      mean += weights.p[j] * d_p[j];
    }
    for (std::int64_t j = 0; j < x.key_length; ++j) {
      const double d_score = x.scale * weights.p[j] * (d_p[j] - mean);
      for (std::int64_t c = 0; c < x.key_width; ++c) {
        const std::int64_t q = query_at(x, place, i) * x.key_width + c, k = key_at(x, place, j) * x.key_width + c;
        result.d_query[q] += d_score * x.key[k];
        result.d_key[k] += d_score * x.query[q];
      }
    }
  });
  return result;
}

}  // namespace fulmen::reference
