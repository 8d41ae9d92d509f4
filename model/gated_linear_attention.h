// TransNormerLLM's token mixer: fused projection, linear attention with decay (and LRPE in some layers), a norm over
// all heads together, a gate, and the output projection:
//   q, k, v, u = normed W^T;   y = out_proj(gate(u) * norm(attention(silu(q), silu(k), v)))
// Variant tnl1 has the gate u in the fused projection; tnl3 has sigmoid(G2 G1 normed) and SiLU on v too.
#pragma once

#include <optional>
#include <vector>

#include "kernels/linear_attention.h"
#include "model/model_config.h"
#include "model/normed_sublayer.h"

namespace fulmen {

class GatedLinearAttention final : public NormedSublayer {
 public:
  static std::vector<ParameterDeclaration> declare(const ModelConfig& config, std::int64_t layer);

  // tensor_ranks must divide the heads.
  GatedLinearAttention(const ModelConfig& config, std::int64_t layer, const ModelContext& context);

  void prepare(int slots) override;
  std::vector<StashTensor> stash(int slot, const BatchShape& shape) override;
  void forward(int slot, const MicroBatch& micro_batch, const Tensor& residual, const Tensor& branch,
               const Tensor& branch_out) override;
  void restore(int slot, const MicroBatch& micro_batch) override;
  Shape state_shape(std::int64_t batch) const override;
  void decode(int slot, const MicroBatch& micro_batch, const Tensor& state, const Tensor& residual,
              const Tensor& branch, const Tensor& branch_out) override;

 private:
  struct Stash {
    Tensor projection;        // [tokens, 4 local] q|k|v|u, or [tokens, 3 local] q|k|v
    Tensor low_rank;          // [tokens, gate_rank] (tnl3)
    Tensor low_rank_gate;     // [tokens, local] (tnl3)
    Tensor initial_state;     // of a slice of a sequence, [batch, heads, state key width, width]
    Tensor piece_states;      // of the attention, where it keeps any
    Tensor attention;         // [tokens, local]
    Tensor gate_inverse_rms;  // [tokens], of the norm over all heads
    Tensor gated, d_projection, d_low_rank, d_low_rank_gate;  // kept for backward_weight
  };

  bool low_rank_gated() const { return gate_first_.has_value(); }
  Tensor gate(const Stash& stash) const;
  // The attention's output where the stash has it, [batch, length, heads, width].
  Tensor attention_output(const Stash& stash, const MicroBatch& micro_batch) const;
  LinearAttentionInputs attention_inputs(const Stash& stash, const MicroBatch& micro_batch) const;
  void differentiate(int slot, const MicroBatch& micro_batch, Arena& kept) override;
  void differentiate_normed(int slot, TokenSum& d_normed, bool beside) override;
  void add_output_gradients(int slot) override;
  void add_input_gradients(int slot, const Execution& execution, const Tensor& normed) override;
  // With a state: one recurrent step; without: the chunk form.
  void run(int slot, const MicroBatch& micro_batch, const Tensor& state, const Tensor& residual, const Tensor& branch,
           const Tensor& branch_out);
  Stash& stash_of(int slot) { return stashes_[static_cast<std::size_t>(slot)]; }

  std::int64_t heads_, head_width_, local_;  // heads_ and local_ (= heads * width) are this rank's
  Activation value_activation_, gate_activation_;
  OwnedTensor slope_;  // fp64 [heads_]
  ParameterId projection_, out_;
  std::optional<ParameterId> theta_, gate_first_, gate_second_;
  std::vector<Stash> stashes_;
};

}  // namespace fulmen
