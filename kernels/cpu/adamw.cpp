// AdamW in one pass over parameters, gradients and moments.
#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

// The coefficients of an element's update, in the parameters' type.
template <class T>
struct Coefficients {
  T clip_scale, decay, beta1, one_minus_beta1, beta2, one_minus_beta2, step_size, inverse_correction2, epsilon;
};

template <class T>
Coefficients<T> coefficients_of(const double* scalars, const AdamwOptions& options) {
  const double learning_rate = scalars[0] * options.learning_rate_scale;
  return {static_cast<T>(scalars[3]),
          static_cast<T>(1.0 - learning_rate * options.weight_decay),
          static_cast<T>(options.beta1),
          static_cast<T>(1.0 - options.beta1),
          static_cast<T>(options.beta2),
          static_cast<T>(1.0 - options.beta2),
          static_cast<T>(learning_rate / scalars[1]),
          static_cast<T>(1.0 / scalars[2]),
          static_cast<T>(options.epsilon)};
}

template <class T, class G>
FULMEN_VECTORIZED void update_range(T* parameters, const G* gradients, T* exp_avg, T* exp_avg_sq,
                                    const Coefficients<T>& coefficients, std::int64_t first, std::int64_t last) {
  const Coefficients<T> c = coefficients;
#pragma omp simd
  for (std::int64_t i = first; i < last; ++i) {
    const T gradient = static_cast<T>(gradients[i]) * c.clip_scale;
    const T m = c.beta1 * exp_avg[i] + c.one_minus_beta1 * gradient;
    const T v = c.beta2 * exp_avg_sq[i] + c.one_minus_beta2 * (gradient * gradient);
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    parameters[i] = parameters[i] * c.decay - c.step_size * m / (std::sqrt(v * c.inverse_correction2) + c.epsilon);
  }
}

}  // namespace

void adamw_update(const Execution&, const Tensor& parameters, const Tensor& gradients, const Tensor& exp_avg,
                  const Tensor& exp_avg_sq, const Tensor& scalars, const AdamwOptions& options, const Tensor&) {
  dispatch_fp32_fp64(parameters.dtype(), [&]<class T>(T) {
    dispatch_fp32_fp64(gradients.dtype(), [&]<class G>(G) {
      const auto coefficients = coefficients_of<T>(scalars.as<double>(), options);
      parallel_elements(parameters.elements(), [&](std::int64_t first, std::int64_t last) {
        update_range(parameters.as<T>(), gradients.as<G>(), exp_avg.as<T>(), exp_avg_sq.as<T>(), coefficients, first,
                     last);
      });
    });
  });
}

void set_clip_scale(const Execution&, const Tensor& square_sum, double max_norm, const Tensor& norm,
                    const Tensor& scalars) {
  const double value = std::sqrt(*square_sum.as<double>());
  const double ratio = max_norm / (value + 1e-6);
  *norm.as<double>() = value;
  // A norm that is not a number stays visible in the scale.
  scalars.as<double>()[3] = max_norm == 0 || ratio > 1 ? 1.0 : ratio;
}

}  // namespace fulmen::cpu
