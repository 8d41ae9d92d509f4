// Linear attention with a constant decay per head (kernels/linear_attention.h) as an operation of branches.
#pragma once

#include "model/crossing.h"

namespace fulmen {

struct DecayAttentionOptions {
  std::int64_t key_width = 0, value_width = 0;  // of a head
  Activation query_key_activation = Activation::silu;
  Activation value_activation = Activation::none;
  bool lrpe = false;  // theta is an input
  bool square_sums = true;
  bool by_heads = false;  // query, key and value are one input, in which a head's three parts lie side by side
};

// Inputs: query, key [tokens, heads * key width], value [tokens, heads * value width], or one matrix of all three. Then
// the slopes [heads], and with LRPE theta [heads, key width]. Results: the attention [tokens, heads * value width], and
// with `square_sums` the squares of each head's part summed [tokens, heads].
class DecayAttention final : public CarryCore {
 public:
  explicit DecayAttention(const DecayAttentionOptions& options) : options_(options) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
  std::vector<KeptTensor> kept(const PassShape& where, Widths in) const override;
  Shape state_shape(std::int64_t batch, Widths in) const override;
  void summarise(const Pass& pass, Tensors in, const Tensor& state, Tensors kept) const override;
  void combine(const Pass& pass, Tensors in, const SliceTable& table, SliceSide side, const Tensor& reach,
               const Tensor& out) const override;
  void forward_from(const Pass& pass, Tensors in, const Tensor& initial, bool summarised, Tensors out,
                    Tensors kept) const override;
  void add_initial_state(const Pass& pass, Tensors in, const Tensor& initial, Tensors out) const override;
  void summarise_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                          const Tensor& d_initial, Tensors work) const override;
  void backward_to(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial, const Tensor& d_final,
                   Tensors work) const override;
  void add_final_state_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                const Tensor& d_final) const override;
  std::vector<StateSpec> states(std::int64_t batch, std::int64_t length, Widths in) const override;
  void step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const override;

 private:
  // Query, key and value, or their gradients, [batch, length, heads, width] each, or null.
  struct Heads {
    Tensor query, key, value;
  };
  Heads heads_of(const Pass& pass, Tensors matrices) const;
  Tensor values_of(const Pass& pass, const Tensor& matrix) const;
  std::size_t matrices() const { return options_.by_heads ? 1 : 3; }
  std::int64_t heads(Widths in) const;
  LinearAttentionInputs inputs(const Pass& pass, Tensors in, const Tensor& initial) const;
  LinearAttentionOutputs results(const Pass& pass, Tensors out, Tensors kept) const;
  LinearAttentionGradients gradients(const Pass& pass, const BackwardTensors& tensors) const;

  DecayAttentionOptions options_;
};

}  // namespace fulmen
