// Token gates, row by row. The library's log1p keeps small results exact.
#include "kernels/token_gate.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/column_sums.h"
#include "kernels/cpu/parallel.h"

namespace fulmen::cpu {
namespace {

template <class T>
T softplus(T u) {
  return std::max(u, T(0)) + std::log1p(std::exp(-std::abs(u)));
}

// Neither end loses digits.
template <class T>
T sigmoid(T u) {
  const T e = std::exp(-std::abs(u));
  return (u >= 0 ? T(1) : e) / (T(1) + e);
}

template <class T>
struct Gated {
  T value, derivative;  // by u
};

template <class T>
Gated<T> gated(const TokenGate& gate, T u, T rate) {
  switch (gate.form) {
    case GateForm::sigmoid: return {sigmoid(u), sigmoid(u) * sigmoid(-u)};
    case GateForm::softplus: return {softplus(u), sigmoid(u)};
    case GateForm::log_sigmoid:
      return {-softplus(-u) / static_cast<T>(gate.divisor), sigmoid(-u) / static_cast<T>(gate.divisor)};
    case GateForm::negative_softplus: return {-rate * softplus(u), -rate * sigmoid(u)};
    case GateForm::negative_exponent: return {-std::exp(u), -std::exp(u)};
  }
  return {};
}

// The inputs of one row's columns.
template <class T>
struct Row {
  Row(const TokenGate& gate, const Tensor& x, std::int64_t row)
      : x_(x.as<T>() + row * x.stride(0)),
        bias_(gate.bias.as<T>()),
        log_rate_(gate.log_rate.as<T>()),
        group_(gate.log_rate ? x.size(1) / gate.log_rate.elements() : 1) {}

  T u(std::int64_t j) const { return x_[j] + (bias_ != nullptr ? bias_[j] : T(0)); }
  T rate(std::int64_t j) const { return log_rate_ != nullptr ? std::exp(log_rate_[j / group_]) : T(1); }

 private:
  const T *x_, *bias_, *log_rate_;
  std::int64_t group_;
};

}  // namespace

void token_gate_forward(const Execution&, const TokenGate& gate, const Tensor& x, const Tensor& y) {
  const std::int64_t width = x.size(1);
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    parallel_rows(x.size(0), 16 * width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const Row<T> row(gate, x, i);
        for (std::int64_t j = 0; j < width; ++j) y.as<T>()[i * width + j] = gated(gate, row.u(j), row.rate(j)).value;
      }
    });
  });
}

void token_gate_backward(const Execution& execution, const TokenGate& gate, const Tensor& d_y, const Tensor& x,
                         const TokenGateGradients& gradients) {
  const std::int64_t tokens = x.size(0), width = x.size(1);
  const bool rates = !gate.log_rate.is_null();
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    Arena::Frame frame(*execution.scratch);
    // A rate's gradient is the sum over its columns, which are summed over the tokens first.
    const Tensor d_rates = rates ? execution.scratch->take(x.dtype(), {width}) : Tensor();
    if (rates && !execution.plans()) std::fill_n(d_rates.as<T>(), width, T(0));
    add_column_sums<T>(execution, tokens, width, {gradients.d_bias, d_rates},
                       [&](std::int64_t first, std::int64_t last, T* sums) {
                         for (std::int64_t i = first; i < last; ++i) {
                           const Row<T> row(gate, x, i);
                           const T* const upstream = d_y.as<T>() + i * width;
                           T* const d_x = gradients.d_x.as<T>() + i * gradients.d_x.stride(0);
                           for (std::int64_t j = 0; j < width; ++j) {
                             const Gated<T> g = gated(gate, row.u(j), row.rate(j));
                             const T d = upstream[j] * g.derivative;
                             sums[j] += d;
                             sums[width + j] += upstream[j] * g.value;
                             d_x[j] = d;
                           }
                         }
                       });
    if (!rates || execution.plans()) return;
    const std::int64_t group = width / gate.log_rate.elements();
    for (std::int64_t j = 0; j < width; ++j) gradients.d_log_rate.as<T>()[j / group] += d_rates.as<T>()[j];
  });
}

}  // namespace fulmen::cpu
