// The normed input of a branch in its backward pass.
#include "model/normed_input.h"

#include "kernels/norm.h"
#include "model/model_context.h"

namespace fulmen {

NormedInput::NormedInput(const ModelContext& context, const Tensor& sum, const Tensor& inverse_rms, double epsilon,
                         const Tensor& part, std::int64_t tokens)
    : early_(context.split_tokens && context.overlap_tensor),
      gather_(early_ ? TokenGather(context, sum.dtype(), sum.size(1), tokens, *context.execution.scratch)
                     : TokenGather(context, part, tokens, *context.execution.scratch)) {
  if (!early_) return;
  residual_norm_forward(context.execution, sum, {}, epsilon, sum, gather_.part(), inverse_rms);
  gather_.start();
}

}  // namespace fulmen
