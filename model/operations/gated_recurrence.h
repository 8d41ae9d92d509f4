// Recurrences whose decay each token chooses (kernels/gated_recurrence.h) as an operation of branches.
#pragma once

#include "kernels/gated_recurrence.h"
#include "model/crossing.h"

namespace fulmen {

struct GatedRecurrenceOptions {
  std::int64_t key_width = 0, value_width = 0;  // of a head
  bool per_channel = false;                     // of the decay
  bool delta = false;                           // the rates are an input
  bool bonus = false;                           // an input, a parameter [heads, key width] in the accumulation dtype
  double scale = 1.0;                           // of the queries
};

// Inputs: query, key [tokens, key heads * key width], value [tokens, heads * value width], the logarithms of the decays
// [tokens, heads], or of each channel [tokens, heads * key width], and the rates [tokens, heads], both in the
// accumulation dtype, or the bonus. Result: [tokens, heads * value width]. The state that crosses borders holds a
// slice's transition, too.
class GatedRecurrence final : public CarryCore {
 public:
  explicit GatedRecurrence(const GatedRecurrenceOptions& options) : options_(options) {}

  std::vector<Port> outputs(Widths in) const override;
  Costs costs(std::int64_t length, Widths in) const override;
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
  static constexpr std::size_t log_decay_place = 3, last_place = 4;  // of the inputs; the rates or the bonus are last

  std::int64_t heads(Widths in) const { return in[2] / options_.value_width; }
  std::int64_t transition_columns() const { return options_.delta ? options_.key_width : 1; }
  // The part of a state that crosses borders which the recurrence itself knows.
  Tensor state_of(const Tensor& crossing) const;
  Tensor transition_of(const Tensor& crossing) const;
  Tensor heads_of(const Pass& pass, const Tensor& matrix, std::int64_t width) const;
  Tensor decays_of(const Pass& pass, const Tensor& matrix) const;
  GatedRecurrenceInputs inputs(const Pass& pass, Tensors in, const Tensor& initial) const;
  GatedRecurrenceGradients gradients(const Pass& pass, const BackwardTensors& tensors) const;

  GatedRecurrenceOptions options_;
};

}  // namespace fulmen
