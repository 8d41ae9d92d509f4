// Chooses the path of softmax attention on a GPU.
#include "kernels/cuda/softmax_attention.h"

#include "kernels/softmax_attention.h"

#ifdef FULMEN_CUDNN
#include <cudnn_graph.h>

#include "kernels/cuda/softmax_attention_cudnn.h"
#endif
#include "framework/error.h"
#include "kernels/cuda/softmax_attention_mma.h"
#include "kernels/cuda/softmax_attention_plain.h"

namespace fulmen::cuda {

std::string softmax_attention_paths() {
#ifdef FULMEN_CUDNN
  const std::size_t version = cudnnGetVersion();
  return fmt::format("cuDNN {}.{}.{} for bf16 without documents, else kernels of our own", version / 10000,
                     version / 100 % 100, version % 100);
#else
  return "kernels of our own: built without cuDNN (-DFULMEN_CUDNN=ON wants it)";
#endif
}

void softmax_attention_forward(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor& output,
                               const Tensor& log_sum_exp) {
#ifdef FULMEN_CUDNN
  if (cudnn_takes(execution, inputs, output))
    return softmax_attention_forward_cudnn(execution, inputs, output, log_sum_exp);
#endif
  if (mma_takes(execution, inputs, output))
    return softmax_attention_forward_mma(execution, inputs, output, log_sum_exp);
  softmax_attention_forward_plain(execution, inputs, output, log_sum_exp);
}

void softmax_attention_backward(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                const SoftmaxAttentionGradients& gradients) {
#ifdef FULMEN_CUDNN
  if (cudnn_takes(execution, inputs, gradients)) return softmax_attention_backward_cudnn(execution, inputs, gradients);
#endif
  if (mma_takes(execution, inputs, gradients)) return softmax_attention_backward_mma(execution, inputs, gradients);
  softmax_attention_backward_plain(execution, inputs, gradients);
}

}  // namespace fulmen::cuda
