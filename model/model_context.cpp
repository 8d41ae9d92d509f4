// The context that executors of branches share.
#include "model/model_context.h"

#include "kernels/gemm.h"

namespace fulmen {

void add_weight_gradient(const ModelContext& context, const Execution& execution, ParameterId weight, const Tensor& d_y,
                         const Tensor& x) {
  const bool first = context.parameters->first_accumulation(weight);
  linear_backward_weight(execution, d_y, x, context.parameters->product_gradient(weight), !first);
}

}  // namespace fulmen
