// Argument checks and dispatch of the cross entropy.
#include "kernels/cross_entropy.h"

#include "kernels/cuda/cross_entropy.h"
#include "kernels/dispatch.h"

namespace fulmen {
namespace {

void check_logits(const Tensor& logits, const Tensor& targets, std::int64_t valid) {
  FULMEN_CHECK(logits.rank() == 2, "logits is {}, expected a matrix", logits.describe());
  check_matrix(logits, logits.dtype(), logits.size(0), logits.size(1), "logits");
  check_vector(targets, DType::int32, logits.size(0), "targets");
  FULMEN_CHECK(valid >= 0 && valid <= logits.size(1), "{} valid columns of {}", valid, logits.size(1));
}

}  // namespace

void cross_entropy_local(const Execution& execution, const Tensor& logits, const Tensor& targets, std::int64_t first,
                         std::int64_t valid, const Tensor& maximum, const Tensor& exp_sum, const Tensor& target_logit) {
  check_logits(logits, targets, valid);
  const DType dtype = accumulation_dtype(logits.dtype());
  check_vector(maximum, dtype, logits.size(0), "maximum");
  check_vector(exp_sum, dtype, logits.size(0), "exp_sum");
  check_vector(target_logit, dtype, logits.size(0), "target_logit");
  if (logits.size(0) == 0) return;
  run_on_device(execution, {"cross entropy forward", 0.0, traffic({logits})}, backends::cross_entropy_local, logits,
                targets, first, valid, maximum, exp_sum, target_logit);
}

void cross_entropy_rescale(const Execution& execution, const Tensor& local_maximum, const Tensor& global_maximum,
                           const Tensor& exp_sum) {
  check_vector(exp_sum, exp_sum.dtype(), exp_sum.elements(), "exp_sum");
  check_vector(local_maximum, exp_sum.dtype(), exp_sum.elements(), "local_maximum");
  check_vector(global_maximum, exp_sum.dtype(), exp_sum.elements(), "global_maximum");
  if (exp_sum.elements() == 0) return;
  run_on_device(execution, {"cross entropy combine", 0.0, traffic({local_maximum, global_maximum, exp_sum, exp_sum})},
                backends::cross_entropy_rescale, local_maximum, global_maximum, exp_sum);
}

void cross_entropy_losses(const Execution& execution, const Tensor& maximum, const Tensor& exp_sum,
                          const Tensor& target_logit, const Tensor& weights, const Tensor& losses) {
  check_vector(losses, DType::fp64, losses.elements(), "losses");
  check_vector(maximum, maximum.dtype(), losses.elements(), "maximum");
  check_vector(exp_sum, maximum.dtype(), losses.elements(), "exp_sum");
  check_vector(target_logit, maximum.dtype(), losses.elements(), "target_logit");
  check_vector(weights, DType::fp32, losses.elements(), "weights");
  if (losses.elements() == 0) return;
  run_on_device(execution, {"cross entropy combine", 0.0, traffic({maximum, exp_sum, target_logit, weights, losses})},
                backends::cross_entropy_losses, maximum, exp_sum, target_logit, weights, losses);
}

void cross_entropy_backward(const Execution& execution, const Tensor& logits, const Tensor& targets,
                            const Tensor& weights, std::int64_t first, std::int64_t valid, const Tensor& maximum,
                            const Tensor& exp_sum, const Tensor& scale, const Tensor& d_logits) {
  check_logits(logits, targets, valid);
  const DType dtype = accumulation_dtype(logits.dtype());
  check_vector(weights, DType::fp32, logits.size(0), "weights");
  check_vector(maximum, dtype, logits.size(0), "maximum");
  check_vector(exp_sum, dtype, logits.size(0), "exp_sum");
  check_vector(scale, DType::fp64, 1, "scale");
  check_matrix(d_logits, logits.dtype(), logits.size(0), logits.size(1), "d_logits");
  if (logits.elements() == 0) return;
  run_on_device(execution, {"cross entropy backward", 0.0, traffic({logits, d_logits})},
                backends::cross_entropy_backward, logits, targets, weights, first, valid, maximum, exp_sum, scale,
                d_logits);
}

void cross_entropy(const Execution& execution, const Tensor& logits, const Tensor& targets, const Tensor& weights,
                   std::int64_t valid, const Tensor& scale, const Tensor& losses, const Tensor& d_logits) {
  check_logits(logits, targets, valid);
  const std::int64_t tokens = logits.size(0);
  check_vector(weights, DType::fp32, tokens, "weights");
  check_vector(losses, DType::fp64, tokens, "losses");
  if (d_logits) {
    check_vector(scale, DType::fp64, 1, "scale");
    check_matrix(d_logits, logits.dtype(), tokens, logits.size(1), "d_logits");
  }
  if (logits.elements() == 0) return;
  const auto in_passes = [&](auto local, auto combine, auto backward) {
    const Arena::Frame frame(*execution.scratch);
    const auto statistics = [&] { return execution.scratch->take(accumulation_dtype(logits.dtype()), {tokens}); };
    const Tensor maximum = statistics(), exp_sum = statistics(), target_logit = statistics();
    if (execution.plans()) return;
    local(execution, logits, targets, 0, valid, maximum, exp_sum, target_logit);
    combine(execution, maximum, exp_sum, target_logit, weights, losses);
    if (d_logits) backward(execution, logits, targets, weights, 0, valid, maximum, exp_sum, scale, d_logits);
  };
  run_on_device(
      execution,
      {d_logits ? "cross entropy with gradient" : "cross entropy without gradient", 0.0, traffic({logits, d_logits}),
       Scratch::on_cpu},
      [&] { in_passes(cpu::cross_entropy_local, cpu::cross_entropy_losses, cpu::cross_entropy_backward); },
      [&] {
        if (!cuda::cross_entropy(execution, logits, targets, weights, valid, scale, losses, d_logits))
          in_passes(cuda::cross_entropy_local, cuda::cross_entropy_losses, cuda::cross_entropy_backward);
      });
}

}  // namespace fulmen
