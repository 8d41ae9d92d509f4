// Linear attention over all pairs of tokens, forward and backward.
#include "kernels/reference/linear_attention.h"

#include <cmath>

#include "kernels/reference/activation.h"

namespace fulmen::reference {
namespace {

using Matrix = std::vector<std::vector<double>>;  // [token][feature]

// One head of one row, features as they enter the products.
struct Head {
  Matrix query, key, value;
  std::vector<std::int64_t> document;  // of each token
};

class Problem {
 public:
  explicit Problem(const LinearAttentionProblem& problem) : p_(problem) {}

  std::int64_t at(std::int64_t row, std::int64_t t, std::int64_t head, std::int64_t width, std::int64_t j) const {
    return ((row * p_.length + t) * p_.heads + head) * width + j;
  }
  std::int64_t state_at(std::int64_t row, std::int64_t head, std::int64_t i, std::int64_t j) const {
    return ((row * p_.heads + head) * p_.state_width() + i) * p_.value_width + j;
  }
  double decay(std::int64_t head, std::int64_t steps) const {
    return std::exp(-p_.slope[head] * static_cast<double>(steps));
  }
  double angle(std::int64_t row, std::int64_t t, std::int64_t head, std::int64_t j) const {
    return static_cast<double>(p_.positions[row * p_.length + t]) * p_.theta[head * p_.key_width + j];
  }

  // [x cos, x sin] of the activated x, or the activated x alone.
  Matrix features(const std::vector<double>& x, std::int64_t row, std::int64_t head) const {
    Matrix result(p_.length, std::vector<double>(p_.state_width()));
    for (std::int64_t t = 0; t < p_.length; ++t) {
      for (std::int64_t j = 0; j < p_.key_width; ++j) {
        const double value = activate(p_.query_key_activation, x[at(row, t, head, p_.key_width, j)]);
        result[t][j] = p_.theta.empty() ? value : value * std::cos(angle(row, t, head, j));
        if (!p_.theta.empty()) result[t][p_.key_width + j] = value * std::sin(angle(row, t, head, j));
      }
    }
    return result;
  }

  Head head(std::int64_t row, std::int64_t h) const {
    Head result{features(p_.query, row, h), features(p_.key, row, h), Matrix(p_.length), {}};
    std::int64_t document = 0;
    for (std::int64_t t = 0; t < p_.length; ++t) {
      for (std::int64_t j = 0; j < p_.value_width; ++j)
        result.value[t].push_back(activate(p_.value_activation, p_.value[at(row, t, h, p_.value_width, j)]));
      for (const std::int64_t offset : p_.segments) document += t > 0 && offset == row * p_.length + t;
      result.document.push_back(document);
    }
    return result;
  }

  // The gradients of x and theta from a gradient of the features.
  void features_backward(const std::vector<double>& x, const Matrix& d_features, std::int64_t row, std::int64_t head,
                         std::vector<double>& d_x, std::vector<double>& d_theta) const {
    for (std::int64_t t = 0; t < p_.length; ++t) {
      for (std::int64_t j = 0; j < p_.key_width; ++j) {
        const std::int64_t i = at(row, t, head, p_.key_width, j);
        double d_activated = d_features[t][j];
        if (!p_.theta.empty()) {
          const double c = std::cos(angle(row, t, head, j)), s = std::sin(angle(row, t, head, j));
          const double d_cosine = d_features[t][j], d_sine = d_features[t][p_.key_width + j];
          d_activated = d_cosine * c + d_sine * s;
          d_theta[head * p_.key_width + j] += static_cast<double>(p_.positions[row * p_.length + t]) *
                                              activate(p_.query_key_activation, x[i]) * (d_sine * c - d_cosine * s);
        }
        d_x[i] = d_activated * activation_derivative(p_.query_key_activation, x[i]);
      }
    }
  }

 private:
  const LinearAttentionProblem& p_;
};

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t j = 0; j < a.size(); ++j) sum += a[j] * b[j];
  return sum;
}

void add(std::vector<double>& sum, double factor, const std::vector<double>& x) {
  for (std::size_t j = 0; j < x.size(); ++j) sum[j] += factor * x[j];
}

// The rows of one head's state.
Matrix state_of(const Problem& problem, const LinearAttentionProblem& p, const std::vector<double>& states,
                std::int64_t row, std::int64_t head) {
  Matrix state(p.state_width(), std::vector<double>(p.value_width, 0.0));
  if (states.empty()) return state;
  for (std::int64_t i = 0; i < p.state_width(); ++i)
    for (std::int64_t j = 0; j < p.value_width; ++j) state[i][j] = states[problem.state_at(row, head, i, j)];
  return state;
}

}  // namespace

LinearAttentionResult linear_attention_forward(const LinearAttentionProblem& p) {
  const Problem problem(p);
  LinearAttentionResult result;
  result.output.resize(p.batch * p.length * p.heads * p.value_width);
  result.square_sums.resize(p.batch * p.length * p.heads);
  result.final_state.resize(p.batch * p.heads * p.state_width() * p.value_width);
  for (std::int64_t row = 0; row < p.batch; ++row) {
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const Head head = problem.head(row, h);
      const Matrix initial = state_of(problem, p, p.initial_state, row, h);
      for (std::int64_t t = 0; t < p.length; ++t) {
        std::vector<double> output(p.value_width, 0.0);
        for (std::int64_t s = 0; s <= t; ++s)
          if (head.document[s] == head.document[t])
            add(output, problem.decay(h, t - s) * dot(head.query[t], head.key[s]), head.value[s]);
        if (head.document[t] == 0)
          for (std::int64_t i = 0; i < p.state_width(); ++i)
            add(output, problem.decay(h, t + 1) * head.query[t][i], initial[i]);
        for (std::int64_t j = 0; j < p.value_width; ++j)
          result.output[problem.at(row, t, h, p.value_width, j)] = output[j];
        result.square_sums[(row * p.length + t) * p.heads + h] = dot(output, output);
      }
      const std::int64_t last = p.length - 1;
      for (std::int64_t i = 0; i < p.state_width(); ++i) {
        for (std::int64_t j = 0; j < p.value_width; ++j) {
          double sum = head.document[last] == 0 ? problem.decay(h, p.length) * initial[i][j] : 0.0;
          for (std::int64_t s = 0; s <= last; ++s)
            if (head.document[s] == head.document[last])
              sum += problem.decay(h, last - s) * head.key[s][i] * head.value[s][j];
          result.final_state[problem.state_at(row, h, i, j)] = sum;
        }
      }
    }
  }
  return result;
}

LinearAttentionDerivatives linear_attention_backward(const LinearAttentionProblem& p,
                                                     const std::vector<double>& d_output,
                                                     const std::vector<double>& d_final_state) {
  const Problem problem(p);
  LinearAttentionDerivatives result;
  result.d_query.resize(p.query.size()), result.d_key.resize(p.key.size()), result.d_value.resize(p.value.size());
  result.d_theta.resize(p.theta.size());
  result.d_initial_state.resize(p.batch * p.heads * p.state_width() * p.value_width);
  for (std::int64_t row = 0; row < p.batch; ++row) {
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const Head head = problem.head(row, h);
      const Matrix initial = state_of(problem, p, p.initial_state, row, h);
      const Matrix d_final = state_of(problem, p, d_final_state, row, h);
      Matrix d_initial(p.state_width(), std::vector<double>(p.value_width, 0.0));
      Matrix d_query(p.length, std::vector<double>(p.state_width(), 0.0)), d_key = d_query;
      Matrix d_value(p.length, std::vector<double>(p.value_width, 0.0));
      const std::int64_t last = p.length - 1;
      for (std::int64_t t = 0; t < p.length; ++t) {
        std::vector<double> d_out(p.value_width);
        for (std::int64_t j = 0; j < p.value_width; ++j) d_out[j] = d_output[problem.at(row, t, h, p.value_width, j)];
        for (std::int64_t s = 0; s <= t; ++s) {
          if (head.document[s] != head.document[t]) continue;
          const double d_score = problem.decay(h, t - s) * dot(d_out, head.value[s]);
          add(d_query[t], d_score, head.key[s]);
          add(d_key[s], d_score, head.query[t]);
          add(d_value[s], problem.decay(h, t - s) * dot(head.query[t], head.key[s]), d_out);
        }
        if (head.document[t] == 0) {
          for (std::int64_t i = 0; i < p.state_width(); ++i) {
            d_query[t][i] += problem.decay(h, t + 1) * dot(d_out, initial[i]);
            add(d_initial[i], problem.decay(h, t + 1) * head.query[t][i], d_out);
          }
        }
        if (head.document[t] == head.document[last]) {
          for (std::int64_t i = 0; i < p.state_width(); ++i) {
            d_key[t][i] += problem.decay(h, last - t) * dot(head.value[t], d_final[i]);
            add(d_value[t], problem.decay(h, last - t) * head.key[t][i], d_final[i]);
          }
        }
      }
      if (head.document[last] == 0)
        for (std::int64_t i = 0; i < p.state_width(); ++i) add(d_initial[i], problem.decay(h, p.length), d_final[i]);
      problem.features_backward(p.query, d_query, row, h, result.d_query, result.d_theta);
      problem.features_backward(p.key, d_key, row, h, result.d_key, result.d_theta);
      for (std::int64_t t = 0; t < p.length; ++t) {
        for (std::int64_t j = 0; j < p.value_width; ++j) {
          const std::int64_t i = problem.at(row, t, h, p.value_width, j);
          result.d_value[i] = d_value[t][j] * activation_derivative(p.value_activation, p.value[i]);
        }
      }
      for (std::int64_t i = 0; i < p.state_width(); ++i)
        for (std::int64_t j = 0; j < p.value_width; ++j)
          result.d_initial_state[problem.state_at(row, h, i, j)] = d_initial[i][j];
    }
  }
  return result;
}

}  // namespace fulmen::reference
