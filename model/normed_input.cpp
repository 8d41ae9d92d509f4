// The normed input of a branch in its backward pass.
#include "model/normed_input.h"

#include "model/model_context.h"

namespace fulmen {

NormedInput::NormedInput(const ModelContext& context, const ResidualNorm& norm, const Tensor& sum,
                         const Tensor& statistics, const Tensor& part, std::int64_t tokens)
    : early_(context.split_tokens && context.overlap_tensor),
      gather_(early_ ? TokenGather(context, sum.dtype(), sum.size(1), tokens, *context.execution.scratch)
                     : TokenGather(context, part, tokens, *context.execution.scratch)) {
  if (!early_) return;
  norm.forward(sum, {}, sum, gather_.part(), statistics);
  gather_.start();
}

}  // namespace fulmen
