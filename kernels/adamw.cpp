// Argument checks and dispatch of AdamW.
#include "kernels/adamw.h"

#include "kernels/dispatch.h"

namespace fulmen {

void adamw_update(const Execution& execution, const Tensor& parameters, const Tensor& gradients, const Tensor& exp_avg,
                  const Tensor& exp_avg_sq, const Tensor& scalars, const AdamwOptions& options, const Tensor& rounded) {
  const std::int64_t count = parameters.elements();
  check_vector(scalars, DType::fp64, adamw_scalars, "scalars");
  if (count == 0) return;
  check_vector(parameters, parameters.dtype(), count, "parameters");
  check_vector(gradients, gradients.dtype(), count, "gradients");
  FULMEN_CHECK(size_of(gradients.dtype()) >= size_of(parameters.dtype()), "gradients are narrower than parameters");
  check_vector(exp_avg, parameters.dtype(), count, "exp_avg");
  check_vector(exp_avg_sq, parameters.dtype(), count, "exp_avg_sq");
  if (rounded) {
    check_vector(rounded, rounded.dtype(), count, "rounded");
    FULMEN_CHECK(execution.device.kind == DeviceKind::cuda, "the CPU computes with the parameters themselves");
  }
  run_on_device(
      execution,
      {"adamw", 0.0, traffic({parameters, parameters, gradients, exp_avg, exp_avg, exp_avg_sq, exp_avg_sq, rounded})},
      backends::adamw_update, parameters, gradients, exp_avg, exp_avg_sq, scalars, options, rounded);
}

void set_clip_scale(const Execution& execution, const Tensor& square_sum, double max_norm, const Tensor& norm,
                    const Tensor& scalars) {
  FULMEN_CHECK(max_norm >= 0, "clipping to the norm {}", max_norm);
  check_vector(square_sum, DType::fp64, 1, "square_sum");
  check_vector(norm, DType::fp64, 1, "norm");
  check_vector(scalars, DType::fp64, adamw_scalars, "scalars");
  run_on_device(execution, {"clip scale", 0.0, traffic({square_sum, norm, scalars})}, backends::set_clip_scale,
                square_sum, max_norm, norm, scalars);
}

}  // namespace fulmen
