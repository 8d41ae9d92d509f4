// Linear attention as the recurrence that defines its state, in double precision. It is an oracle for long rows, where
// the oracle over all pairs of tokens would take too long.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "kernels/reference/activation.h"
#include "tests/kernels/attention_cases.h"

namespace fulmen::testing {

struct Recurrence {
  reference::LinearAttentionResult result;
  reference::LinearAttentionDerivatives derivatives;
  // The largest root of a sum of squares over the summands of an element of d_theta. Rounding errors of the summands
  // are held against it, as most of the sum itself cancels.
  double theta_terms = 0;
};

namespace detail {

// One head of one row. Rows of features lie one behind the other.
class HeadRecurrence {
 public:
  HeadRecurrence(const reference::LinearAttentionProblem& p, const Upstream& upstream, std::int64_t row,
                 std::int64_t head, Recurrence& all, Values& d_theta, Values& theta_squares)
      : p_(p),
        upstream_(upstream),
        row_(row),
        head_(head),
        keys_(p.state_width()),
        values_(p.value_width),
        decay_(std::exp(-p.slope[head])),
        all_(all),
        d_theta_(d_theta),
        theta_squares_(theta_squares) {
    query_ = features(p.query), key_ = features(p.key);
    for (std::int64_t t = 0; t < p.length; ++t) {
      for (std::int64_t j = 0; j < values_; ++j) {
        value_.push_back(reference::activate(p.value_activation, p.value[at(t, values_, j)]));
        d_output_.push_back(upstream.d_output.empty() ? 0.0 : upstream.d_output[at(t, values_, j)]);
      }
      starts_.push_back(std::binary_search(p.segments.begin(), p.segments.end(), row * p.length + t));
    }
  }

  void run() {
    forward();
    if (!upstream_.d_output.empty()) backward();
  }

 private:
  std::int64_t at(std::int64_t t, std::int64_t width, std::int64_t j) const {
    return ((row_ * p_.length + t) * p_.heads + head_) * width + j;
  }
  std::int64_t state_begin() const { return (row_ * p_.heads + head_) * keys_ * values_; }
  double angle(std::int64_t t, std::int64_t j) const {
    return static_cast<double>(p_.positions[row_ * p_.length + t]) * p_.theta[head_ * p_.key_width + j];
  }

  Values features(const Values& x) const {
    Values result(p_.length * keys_);
    for (std::int64_t t = 0; t < p_.length; ++t) {
      for (std::int64_t j = 0; j < p_.key_width; ++j) {
        const double value = reference::activate(p_.query_key_activation, x[at(t, p_.key_width, j)]);
        double* const to = result.data() + t * keys_ + j;
        to[0] = p_.theta.empty() ? value : value * std::cos(angle(t, j));
        if (!p_.theta.empty()) to[p_.key_width] = value * std::sin(angle(t, j));
      }
    }
    return result;
  }

  // S = decay S + k^T v, o = q S; on the way d_q = d_o S^T.
  void forward() {
    Values state(keys_ * values_, 0.0), output(values_);
    if (!p_.initial_state.empty()) std::copy_n(p_.initial_state.data() + state_begin(), state.size(), state.data());
    d_query_.assign(p_.length * keys_, 0.0);
    for (std::int64_t t = 0; t < p_.length; ++t) {
      if (t > 0 && starts_[t]) std::fill(state.begin(), state.end(), 0.0);
      std::fill(output.begin(), output.end(), 0.0);
      const double *const v = value_.data() + t * values_, *const d_o = d_output_.data() + t * values_;
      for (std::int64_t i = 0; i < keys_; ++i) {
        const double q = query_[t * keys_ + i], k = key_[t * keys_ + i];
        double* const s = state.data() + i * values_;
        double d_q[4] = {0, 0, 0, 0};
        for (std::int64_t j = 0; j < values_; ++j) {
          s[j] = decay_ * s[j] + k * v[j];
          output[j] += q * s[j];
          d_q[j % 4] += d_o[j] * s[j];
        }
        d_query_[t * keys_ + i] = d_q[0] + d_q[1] + d_q[2] + d_q[3];
      }
      double squares = 0;
      for (std::int64_t j = 0; j < values_; ++j) {
        all_.result.output[at(t, values_, j)] = output[j];
        squares += output[j] * output[j];
      }
      all_.result.square_sums[at(t, 1, 0)] = squares;
    }
    std::copy(state.begin(), state.end(), all_.result.final_state.data() + state_begin());
  }

  // With dS = decay dS' + q^T d_o, the adjoint of a token's state: d_k = v dS^T, d_v = k dS.
  void backward() {
    Values adjoint(keys_ * values_, 0.0), d_key(p_.length * keys_);
    const Values& d_final = upstream_.d_final_state;
    if (!d_final.empty()) std::copy_n(d_final.data() + state_begin(), adjoint.size(), adjoint.data());
    for (std::int64_t t = p_.length - 1; t >= 0; --t) {
      const double decay = t + 1 == p_.length ? 1.0 : starts_[t + 1] ? 0.0 : decay_;
      const double *const v = value_.data() + t * values_, *const d_o = d_output_.data() + t * values_;
      Values d_value(values_, 0.0);
      for (std::int64_t i = 0; i < keys_; ++i) {
        const double q = query_[t * keys_ + i], k = key_[t * keys_ + i];
        double* const s = adjoint.data() + i * values_;
        double d_k[4] = {0, 0, 0, 0};
        for (std::int64_t j = 0; j < values_; ++j) {
          s[j] = decay * s[j] + q * d_o[j];
          d_value[j] += k * s[j];
          d_k[j % 4] += v[j] * s[j];
        }
        d_key[t * keys_ + i] = d_k[0] + d_k[1] + d_k[2] + d_k[3];
      }
      for (std::int64_t j = 0; j < values_; ++j) {
        const std::int64_t i = at(t, values_, j);
        all_.derivatives.d_value[i] = d_value[j] * reference::activation_derivative(p_.value_activation, p_.value[i]);
      }
    }
    for (std::int64_t i = 0; i < keys_ * values_; ++i)
      all_.derivatives.d_initial_state[state_begin() + i] = decay_ * adjoint[i];
    features_backward(p_.query, d_query_, all_.derivatives.d_query);
    features_backward(p_.key, d_key, all_.derivatives.d_key);
  }

  void features_backward(const Values& x, const Values& d_features, Values& d_x) {
    for (std::int64_t t = 0; t < p_.length; ++t) {
      for (std::int64_t j = 0; j < p_.key_width; ++j) {
        const std::int64_t i = at(t, p_.key_width, j);
        const double* const d = d_features.data() + t * keys_ + j;
        double gradient = d[0];
        if (!p_.theta.empty()) {
          const double c = std::cos(angle(t, j)), s = std::sin(angle(t, j));
          const double factor = static_cast<double>(p_.positions[row_ * p_.length + t]) *
                                reference::activate(p_.query_key_activation, x[i]);
          const double from_sine = factor * d[p_.key_width] * c, from_cosine = factor * d[0] * s;
          d_theta_[j] += from_sine - from_cosine;
          theta_squares_[j] += from_sine * from_sine + from_cosine * from_cosine;
          gradient = d[0] * c + d[p_.key_width] * s;
        }
        d_x[i] = gradient * reference::activation_derivative(p_.query_key_activation, x[i]);
      }
    }
  }

  const reference::LinearAttentionProblem& p_;
  const Upstream& upstream_;
  std::int64_t row_, head_, keys_, values_;
  double decay_;
  Recurrence& all_;
  Values &d_theta_, &theta_squares_;  // [key width], of this row and head
  Values query_, key_, value_, d_output_, d_query_;
  std::vector<bool> starts_;
};

}  // namespace detail

// The derivatives are left at zero when upstream.d_output is empty. Heads are shared out over threads.
inline Recurrence run_recurrence(const reference::LinearAttentionProblem& p, const Upstream& upstream) {
  Recurrence all;
  const std::int64_t tokens = p.batch * p.length * p.heads, tasks = p.batch * p.heads;
  all.result.output.resize(tokens * p.value_width);
  all.result.square_sums.resize(tokens);
  all.result.final_state.resize(elements_of(state_shape(p)));
  all.derivatives.d_query.resize(p.query.size()), all.derivatives.d_key.resize(p.key.size());
  all.derivatives.d_value.resize(p.value.size());
  all.derivatives.d_initial_state.resize(elements_of(state_shape(p)));
  std::vector<Values> d_theta(tasks, Values(p.key_width, 0.0)), squares = d_theta;
  std::atomic<std::int64_t> next{0};
  const auto work = [&] {
    for (std::int64_t task; (task = next++) < tasks;)
      detail::HeadRecurrence(p, upstream, task / p.heads, task % p.heads, all, d_theta[task], squares[task]).run();
  };
  std::vector<std::thread> threads;
  const std::int64_t most = std::min<std::int64_t>(tasks, std::max(1u, std::thread::hardware_concurrency()));
  for (std::int64_t i = 1; i < most; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (p.theta.empty()) return all;
  all.derivatives.d_theta.assign(p.heads * p.key_width, 0.0);
  for (std::int64_t head = 0; head < p.heads; ++head) {
    for (std::int64_t j = 0; j < p.key_width; ++j) {
      double sum = 0;
      for (std::int64_t row = 0; row < p.batch; ++row) {
        all.derivatives.d_theta[head * p.key_width + j] += d_theta[row * p.heads + head][j];
        sum += squares[row * p.heads + head][j];
      }
      all.theta_terms = std::max(all.theta_terms, std::sqrt(sum));
    }
  }
  return all;
}

}  // namespace fulmen::testing
