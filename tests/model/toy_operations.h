// Operations of a family that only tests know (tests/model/toy_family.h), an operation for each way in which it can
// lean on its executor. Plain loops on the CPU, in fp32 and fp64.
#pragma once

#include "model/crossing.h"

namespace fulmen {

// Halo: y_t = x_t + mix_1 * x_(t-1) + mix_2 * x_(t-2), within the document. Inputs: x [tokens, width], mix [2, width].
class ToyShift final : public HaloCore {
 public:
  std::int64_t halo() const override { return 2; }
  std::vector<Port> outputs(Widths in) const override { return {{.width = in[0], .keep = Keep::remade}}; }
  Costs costs(std::int64_t length, Widths in) const override;
  void forward_after(const Pass& pass, Tensors in, const Tensor& before, Tensors out, Tensors kept) const override;
  void backward_after(const Pass& pass, const BackwardTensors& tensors, const Tensor& before,
                      const Tensor& d_before) const override;
};

// Carry, and a state that grows with the text: y_t = sum of x_s over the document up to t. Decoding keeps every token.
class ToyRunningSum final : public CarryCore {
 public:
  std::vector<Port> outputs(Widths in) const override { return {{.width = in[0], .keep = Keep::all}}; }
  Costs costs(std::int64_t length, Widths in) const override;
  Shape state_shape(std::int64_t batch, Widths in) const override { return {batch, in[0]}; }
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
  std::vector<StateSpec> states(std::int64_t batch, std::int64_t length, Widths in) const override {
    return {{PortType::activation, {batch, length, in[0]}}};
  }
  void step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const override;
};

// y = a + b.
class ToyAdd final : public LocalOperation {
 public:
  std::vector<Port> outputs(Widths in) const override { return {{.width = in[0], .keep = Keep::all}}; }
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;
};

// Softmax of each row.
class ToySoftmax final : public LocalOperation {
 public:
  std::vector<Port> outputs(Widths in) const override { return {{.width = in[0], .keep = Keep::all}}; }
  Costs costs(std::int64_t length, Widths in) const override;
  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const override;
  void backward(const Pass& pass, const BackwardTensors& tensors) const override;
};

// Owned parameters: y_t = sum_e p_te B_e A_e x_t, this rank's share over the inner width. Inputs: x [tokens, hidden],
// p [tokens, items], the stacks A [items, inner, hidden] and B [items, hidden, inner].
class ToyExperts final : public OwnedOperation {
 public:
  explicit ToyExperts(std::int64_t items) : items_(items) {}
  std::int64_t items() const override { return items_; }
  std::vector<Port> outputs(Widths in) const override { return {{.width = in[0], .keep = Keep::never}}; }
  Costs costs(std::int64_t length, Widths in) const override;
  void forward_owned(const Execution& execution, IndexRange owned, Tensors in, Tensors out) const override;
  void backward_owned(const Execution& execution, IndexRange owned, const BackwardTensors& tensors) const override;

 private:
  std::int64_t items_;
};

// A loss of a layer: of each sample the number of columns times the sum of squares of the mean over tokens of p.
class ToyBalance final : public LossOperation {
 public:
  std::int64_t statistics(Widths in) const override { return in[0] + 1; }  // the sums, and the tokens
  void summarise(const Pass& pass, Tensors in, const Tensor& sums) const override;
  void add_loss(const Pass& pass, const Tensor& sums, double scale, const Tensor& loss) const override;
  void backward(const Pass& pass, Tensors in, const Tensor& sums, double scale, Tensors d_in) const override;
};

}  // namespace fulmen
