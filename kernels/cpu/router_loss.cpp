// The router's loss on the CPU.

#include <algorithm>

#include "kernels/cpu/parallel.h"
#include "kernels/router_loss.h"

namespace fulmen::cpu {

void router_loss_sums(const Execution&, const Tensor& weights, const Tensor& probabilities, const Tensor& sums) {
  const std::int64_t experts = weights.size(1), batch = sums.size(0), length = weights.size(0) / batch;
  dispatch_fp32_fp64(weights.dtype(), [&]<class T>(T) {
    parallel_rows(batch, length * experts, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t b = first; b < last; ++b) {
        double* const of_sample = sums.as<double>() + b * sums.size(1);
        std::fill_n(of_sample, 2 * experts, 0.0);
        of_sample[2 * experts] = static_cast<double>(length);
        for (std::int64_t i = b * length * experts; i < (b + 1) * length * experts; ++i) {
          of_sample[i % experts] += weights.as<T>()[i] > T(0) ? 1.0 : 0.0;
          of_sample[experts + i % experts] += static_cast<double>(probabilities.as<T>()[i]);
        }
      }
    });
  });
}

void router_loss_add(const Execution&, const Tensor& sums, double scale, const Tensor& loss) {
  const std::int64_t experts = (sums.size(1) - 1) / 2;
  for (std::int64_t b = 0; b < sums.size(0); ++b) {
    const double* const of_sample = sums.as<double>() + b * sums.size(1);
    const double tokens = of_sample[2 * experts];
    double sum = 0.0;
    for (std::int64_t e = 0; e < experts; ++e) sum += of_sample[e] / tokens * (of_sample[experts + e] / tokens);
    *loss.as<double>() += scale * static_cast<double>(experts) * sum;
  }
}

void router_loss_backward(const Execution&, const Tensor& sums, double scale, const Tensor& d_probabilities) {
  const std::int64_t experts = d_probabilities.size(1), length = d_probabilities.size(0) / sums.size(0);
  dispatch_fp32_fp64(d_probabilities.dtype(), [&]<class T>(T) {
    parallel_rows(d_probabilities.size(0), experts, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t t = first; t < last; ++t) {
        const double* const of_sample = sums.as<double>() + t / length * sums.size(1);
        const double tokens = of_sample[2 * experts];
        for (std::int64_t e = 0; e < experts; ++e)
          d_probabilities.as<T>()[t * experts + e] =
              static_cast<T>(scale * static_cast<double>(experts) * of_sample[e] / tokens / tokens);
      }
    });
  });
}

}  // namespace fulmen::cpu
