// Causal softmax attention (kernels/softmax_attention.h) as an operation of branches.
#pragma once

#include "kernels/softmax_attention.h"
#include "model/crossing.h"

namespace fulmen {

// Inputs: query [tokens, heads * head width], key and value [tokens, kv heads * head width].
// Result: the attention [tokens, heads * head width].
class SoftmaxAttention final : public RingCore {
 public:
  explicit SoftmaxAttention(std::int64_t head_width) : head_width_(head_width) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  std::vector<KeptTensor> kept(const PassShape& where, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;
  std::vector<StateSpec> states(std::int64_t batch, std::int64_t length, Widths in) const override;
  void step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const override;

  void find_first_visible(const Pass& pass, const Tensor& first) const override;
  std::int64_t log_sums(Widths in) const override { return in[0] / head_width_; }
  void forward_block(const Execution& execution, const RingQueries& queries, const RingKeys& keys, const Tensor& output,
                     const Tensor& log_sum) const override;
  void merge_block(const Execution& execution, const Tensor& block_output, const Tensor& block_log_sum, bool first,
                   const Tensor& output, const Tensor& log_sum) const override;
  void backward_block(const Execution& execution, const RingQueries& queries, const RingKeys& keys,
                      const RingGradients& gradients) const override;

 private:
  Tensor first_visible(const Pass& pass) const;  // in scratch memory
  RingQueries queries(const Pass& pass, Tensors in) const;
  RingKeys keys(const Pass& pass, Tensors in) const;
  Tensor heads_of(const Tensor& rows) const { return rows.split_dimension(2, head_width_); }
  SoftmaxAttentionInputs inputs(const RingQueries& queries, const RingKeys& keys) const;

  std::int64_t head_width_;
};

}  // namespace fulmen
