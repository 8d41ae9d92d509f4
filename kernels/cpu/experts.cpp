// Mixture of experts: threads over tokens, or over the places that tokens have with experts.

#include <algorithm>
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"
#include "kernels/experts.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED void add_row(const T* x, T* sum, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) sum[j] += x[j];
}

template <class T>
FULMEN_VECTORIZED void scale_row(T* x, T factor, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) x[j] *= factor;
}

template <class T>
FULMEN_VECTORIZED T dot(const T* a, const T* b, std::int64_t width) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < width; ++j) sum += a[j] * b[j];
  return sum;
}

template <class T>
void softmax(const T* logits, T* probabilities, std::int64_t experts) {
  const T largest = *std::max_element(logits, logits + experts);
  T sum = 0;
  for (std::int64_t e = 0; e < experts; ++e) sum += probabilities[e] = std::exp(logits[e] - largest);
  for (std::int64_t e = 0; e < experts; ++e) probabilities[e] /= sum;
}

template <class T>
void choose(const T* probabilities, std::int64_t experts, std::int64_t chosen, T* weights) {
  std::fill_n(weights, experts, T(0));
  T sum = 0;
  for (std::int64_t i = 0; i < chosen; ++i) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < experts; ++e)
      if (weights[e] == T(0) && (best < 0 || probabilities[e] > probabilities[best])) best = e;
    weights[best] = probabilities[best];
    sum += probabilities[best];
    if (weights[best] == T(0)) break;  // all that are left have a probability of zero
  }
  for (std::int64_t e = 0; e < experts; ++e)
    if (weights[e] != T(0)) weights[e] /= sum;
}

template <class T>
void differentiate_row(const T* p, const T* w, const T* d_p, const T* d_w, std::int64_t experts, T* d_logits) {
  T chosen = 0, of_weights = 0, of_probabilities = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    if (w[e] == T(0)) continue;
    chosen += p[e];
    if (d_w != nullptr) of_weights += d_w[e] * w[e];
  }
  for (std::int64_t e = 0; e < experts; ++e) {
    d_logits[e] = d_p != nullptr ? d_p[e] : T(0);
    if (d_w != nullptr && w[e] != T(0)) d_logits[e] += (d_w[e] - of_weights) / chosen;
    of_probabilities += d_logits[e] * p[e];
  }
  for (std::int64_t e = 0; e < experts; ++e) d_logits[e] = p[e] * (d_logits[e] - of_probabilities);
}

// Calls f(row of x, token, expert) for each place of a token, expert counted over all.
template <class T, class F>
void for_each_place(const ExpertOrder& order, std::int64_t first, const Tensor& x, const F& f) {
  parallel_rows(x.size(0), x.size(1), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      if (order.tokens.as<std::int32_t>()[i] >= 0)
        f(i, order.tokens.as<std::int32_t>()[i], first + order.experts.as<std::int32_t>()[i]);
  });
}

}  // namespace

void router_forward(const Execution&, const Tensor& logits, std::int64_t chosen, const Tensor& probabilities,
                    const Tensor& weights) {
  const std::int64_t experts = logits.size(1);
  dispatch_fp32_fp64(logits.dtype(), [&]<class T>(T) {
    parallel_rows(logits.size(0), experts * (chosen + 8), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t t = first; t < last; ++t) {
        T* const p = probabilities.as<T>() + t * experts;
        softmax(logits.as<T>() + t * logits.stride(0), p, experts);
        choose(p, experts, chosen, weights.as<T>() + t * experts);
      }
    });
  });
}

void router_backward(const Execution&, const Tensor& probabilities, const Tensor& weights,
                     const Tensor& d_probabilities, const Tensor& d_weights, const Tensor& d_logits) {
  const std::int64_t experts = d_logits.size(1);
  dispatch_fp32_fp64(d_logits.dtype(), [&]<class T>(T) {
    const auto row = [&](const Tensor& table, std::int64_t t) { return table ? table.as<T>() + t * experts : nullptr; };
    parallel_rows(d_logits.size(0), 8 * experts, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t t = first; t < last; ++t)
        differentiate_row<T>(row(probabilities, t), row(weights, t), row(d_probabilities, t), row(d_weights, t),
                             experts, d_logits.as<T>() + t * d_logits.stride(0));
    });
  });
}

void order_by_expert(const Execution&, const Tensor& weights, std::int64_t first, std::int64_t chosen,
                     std::int64_t alignment, const ExpertOrder& order) {
  const std::int64_t tokens = weights.size(0), experts = weights.size(1), owned = order.offsets.size(0) - 1;
  auto* const offsets = order.offsets.as<std::int64_t>();
  auto* const places = order.places.as<std::int32_t>();
  dispatch_fp32_fp64(weights.dtype(), [&]<class T>(T) {
    const auto has = [&](std::int64_t t, std::int64_t e) { return weights.as<T>()[t * experts + first + e] != T(0); };
    std::int64_t place = 0;
    std::fill_n(order.tokens.as<std::int32_t>(), order.tokens.size(0), -1);
    for (std::int64_t e = 0; e < owned; ++e) {
      offsets[e] = place;
      for (std::int64_t t = 0; t < tokens; ++t) {
        if (!has(t, e)) continue;
        order.tokens.as<std::int32_t>()[place] = static_cast<std::int32_t>(t);
        order.experts.as<std::int32_t>()[place++] = static_cast<std::int32_t>(e);
      }
      place = (place + alignment - 1) / alignment * alignment;
    }
    offsets[owned] = place;
  });
  std::fill_n(places, tokens * chosen, -1);
  for (std::int64_t i = 0; i < offsets[owned]; ++i) {
    const std::int32_t token = order.tokens.as<std::int32_t>()[i];
    if (token < 0) continue;
    std::int32_t* const own = places + token * chosen;
    *std::find(own, own + chosen, -1) = static_cast<std::int32_t>(i);
  }
}

void gather_rows(const Execution&, const Tensor& x, const Tensor& tokens, const Tensor& y) {
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    parallel_rows(y.size(0), y.size(1), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        T* const row = y.as<T>() + i * y.stride(0);
        if (const std::int32_t token = tokens.as<std::int32_t>()[i]; token >= 0)
          std::copy_n(x.as<T>() + token * x.stride(0), y.size(1), row);
        else
          std::fill_n(row, y.size(1), T(0));
      }
    });
  });
}

void combine_rows(const Execution&, const Tensor& y, const Tensor& places, const Tensor& out) {
  const std::int64_t chosen = places.size(1);
  dispatch_fp32_fp64(out.dtype(), [&]<class T>(T) {
    parallel_rows(out.size(0), out.size(1) * chosen, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t t = first; t < last; ++t) {
        T* const sum = out.as<T>() + t * out.stride(0);
        std::fill_n(sum, out.size(1), T(0));
        for (std::int64_t j = 0; j < chosen; ++j)
          if (const std::int32_t place = places.as<std::int32_t>()[t * chosen + j]; place >= 0)
            add_row(y.as<T>() + place * y.stride(0), sum, out.size(1));
      }
    });
  });
}

void weigh_rows(const Execution&, const ExpertOrder& order, const Tensor& weights, std::int64_t first,
                const Tensor& x) {
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    for_each_place<T>(order, first, x, [&](std::int64_t i, std::int64_t token, std::int64_t expert) {
      scale_row(x.as<T>() + i * x.stride(0), weights.as<T>()[token * weights.size(1) + expert], x.size(1));
    });
  });
}

void weigh_rows_backward(const Execution&, const ExpertOrder& order, const Tensor& weights, std::int64_t first,
                         const Tensor& d_y, const Tensor& x, const Tensor& d_weights) {
  dispatch_fp32_fp64(x.dtype(), [&]<class T>(T) {
    for_each_place<T>(order, first, x, [&](std::int64_t i, std::int64_t token, std::int64_t expert) {
      const std::int64_t at = token * weights.size(1) + expert;
      T *const row = x.as<T>() + i * x.stride(0), *const gradient = d_y.as<T>() + i * d_y.stride(0);
      d_weights.as<T>()[at] = dot(gradient, row, x.size(1));
      scale_row(gradient, weights.as<T>()[at], x.size(1));
      scale_row(row, weights.as<T>()[at], x.size(1));
    });
  });
}

}  // namespace fulmen::cpu
