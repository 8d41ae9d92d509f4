// Argument checks and dispatch of the router's loss.
#include "kernels/router_loss.h"

#include "kernels/dispatch.h"

namespace fulmen {

namespace {

void check_sums(const Tensor& sums, std::int64_t experts, std::int64_t tokens) {
  check_matrix(sums, DType::fp64, sums.size(0), 2 * experts + 1, "sums");
  FULMEN_CHECK(sums.is_contiguous() && sums.size(0) > 0 && tokens % sums.size(0) == 0, "{} tokens of {} samples",
               tokens, sums.size(0));
}

}  // namespace

void router_loss_sums(const Execution& execution, const Tensor& weights, const Tensor& probabilities,
                      const Tensor& sums) {
  check_sums(sums, weights.size(1), weights.size(0));
  check_matrix(probabilities, weights.dtype(), weights.size(0), weights.size(1), "probabilities");
  run_on_device(execution, {"router loss", 0.0, traffic({weights, probabilities})}, backends::router_loss_sums, weights,
                probabilities, sums);
}

void router_loss_add(const Execution& execution, const Tensor& sums, double scale, const Tensor& loss) {
  check_vector(loss, DType::fp64, 1, "loss");
  run_on_device(execution, {"router loss", 0.0, traffic({sums})}, backends::router_loss_add, sums, scale, loss);
}

void router_loss_backward(const Execution& execution, const Tensor& sums, double scale, const Tensor& d_probabilities) {
  check_sums(sums, d_probabilities.size(1), d_probabilities.size(0));
  run_on_device(execution, {"router loss", 0.0, traffic({d_probabilities})}, backends::router_loss_backward, sums,
                scale, d_probabilities);
}

}  // namespace fulmen
