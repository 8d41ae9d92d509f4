// What sublayers share.
#include "model/sublayer.h"

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/norm.h"

namespace fulmen {

void add_and_normalize(const ModelContext& context, const Tensor& residual, const Tensor& branch, double epsilon,
                       const Tensor& sum, const Tensor& normed, const Tensor& inverse_rms) {
  if (branch) {
    residual_norm_forward(context.execution, residual, branch, epsilon, sum, normed, inverse_rms);
    return;
  }
  if (sum.data() != residual.data()) copy(context.execution, residual, sum);
  residual_norm_forward(context.execution, sum, {}, epsilon, sum, normed, inverse_rms);
}

void add_weight_gradient(const ModelContext& context, const Execution& execution, ParameterId weight, const Tensor& d_y,
                         const Tensor& x) {
  const bool first = context.parameters->first_accumulation(weight);
  linear_backward_weight(execution, d_y, x, context.parameters->gradient(weight), !first);
}

}  // namespace fulmen
