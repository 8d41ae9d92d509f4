// TransNormerLLM's token mixer: fused projection, linear attention with decay (and LRPE in some layers), a norm over all
// heads together, a gate, and the output projection:
//   q, k, v, u = normed W^T;   y = out_proj(gate(u) * norm(attention(silu(q), silu(k), v)))
// Variant tnl1 has the gate u in the fused projection; tnl3 has sigmoid(G2 G1 normed) and SiLU on v too.
#pragma once

#include <optional>
#include <vector>

#include "kernels/linear_attention.h"
#include "model/model_config.h"
#include "model/sublayer.h"
#include "model/token_split.h"

namespace fulmen {

class GatedLinearAttention final : public Sublayer {
 public:
  static std::vector<ParameterDeclaration> declare(const ModelConfig& config, std::int64_t layer);

  // tensor_ranks must divide the heads.
  GatedLinearAttention(const ModelConfig& config, std::int64_t layer, const ModelContext& context);

  void prepare(int slots) override;
  std::vector<StashTensor> stash(int slot, const BatchShape& shape) override;
  void forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
               const Tensor& branch_out) override;
  Tensor sum(int slot) const override { return stashes_[static_cast<std::size_t>(slot)].sum; }
  void restore(int slot, const MicroBatch& micro_batch) override;
  void backward_input(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in) override;
  void backward_weight(int slot) override;
  void backward(int slot, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out, TokenGather& d_in) override;
  Shape state_shape(std::int64_t batch) const override;
  void decode(int slot, const MicroBatch& micro_batch, const Tensor& state, const Tensor& residual, const Tensor& branch,
              const Tensor& branch_out) override;

 private:
  struct Stash {
    Tensor sum;                      // [residual rows, hidden]
    Tensor inverse_rms;              // [residual rows], of the norm before the projection
    Tensor projection;               // [tokens, 4 local] q|k|v|u, or [tokens, 3 local] q|k|v
    Tensor low_rank;                 // [tokens, gate_rank] (tnl3)
    Tensor low_rank_gate;            // [tokens, local] (tnl3)
    Tensor initial_state;            // of a slice of a sequence, [batch, heads, state key width, width]
    Tensor piece_states;             // of the attention, where it keeps any
    Tensor attention;                // [tokens, local]
    Tensor gate_inverse_rms;         // [tokens], of the norm over all heads
    Tensor d_out, gated, normed, d_projection, d_low_rank, d_low_rank_gate;   // kept for backward_weight
  };

  bool low_rank_gated() const { return gate_first_.has_value(); }
  Tensor gate(const Stash& stash) const;
  // The attention's output where the stash has it, [batch, length, heads, width].
  Tensor attention_output(const Stash& stash, const MicroBatch& micro_batch) const;
  LinearAttentionInputs attention_inputs(const Stash& stash, const MicroBatch& micro_batch) const;
  // The steps of backward_input: the gradient of the projection, in memory that is kept for backward_weight; and that of the
  // normed input, to be summed over the tensor ranks, `beside`: with other communication under way.
  void differentiate(Stash& stash, const MicroBatch& micro_batch, Arena& kept, TokenGather& d_out);
  void differentiate_input(const Stash& stash, TokenSum& d_normed, bool beside);
  // The halves of backward_weight: of what is behind the attention, and of what is in front of it.
  void add_output_gradients(const Stash& stash);
  void add_input_gradients(const Stash& stash, const Execution& execution, const Tensor& normed);
  // With a state: one recurrent step; without: the chunk form.
  void run(Stash& stash, const MicroBatch& micro_batch, const Tensor& state, const Tensor& residual, const Tensor& branch,
           const Tensor& branch_out);

  const ModelContext& context_;
  std::int64_t hidden_, heads_, head_width_, local_;   // heads_ and local_ (= heads * width) are this rank's
  double epsilon_;
  Activation value_activation_, gate_activation_;
  OwnedTensor slope_;                                  // fp64 [heads_]
  ParameterId projection_, out_;
  std::optional<ParameterId> theta_, gate_first_, gate_second_;
  std::vector<Stash> stashes_;
};

}  // namespace fulmen
