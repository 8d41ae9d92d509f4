// Operations that look beyond what this rank holds. They say what crosses a border between slices, never to whom. Which
// ranks hold the neighbours, and how tensors get there, is in model/slice_crossing.cpp alone.
#pragma once

#include "kernels/linear_attention_states.h"
#include "model/local_operation.h"
#include "parallel/placement.h"

namespace fulmen {

// A recurrence whose state at a border sums up all that came before (arXiv 2404.02882, 2502.07563). The state is one
// tensor in the accumulation dtype, whose first dimension is the batch. With `initial` null the state starts as zero.
class CarryCore : public LocalOperation {
 public:
  // The states of all slices, [slices, state shape], and where the slices lie.
  struct SliceTable {
    Tensor states;
    Tensor bounds;  // int64 [slices + 1]
    int slice = 0;  // the slice that asks
  };

  virtual Shape state_shape(std::int64_t batch, Widths in) const = 0;
  // The state after the slice, from zero. Its results in `kept` are given to forward_from as `summarised`.
  virtual void summarise(const Pass& pass, Tensors in, const Tensor& state, Tensors kept) const = 0;
  // The state in front of the slice from the states of earlier slices. Or the gradient of the state behind it from the
  // gradients of later slices. reach int64 [batch]: how far a row's document goes on to that side.
  virtual void combine(const Pass& pass, Tensors in, const SliceTable& table, SliceSide side, const Tensor& reach,
                       const Tensor& out) const = 0;
  virtual void forward_from(const Pass& pass, Tensors in, const Tensor& initial, bool summarised, Tensors out,
                            Tensors kept) const = 0;
  // Adds to the results what forward_from would have added for a state that arrives later.
  virtual void add_initial_state(const Pass& pass, Tensors in, const Tensor& initial, Tensors out) const = 0;
  // The gradient of the initial state, with nothing coming from behind the slice. `work`: tensors like those kept,
  // which backward_to is given again.
  virtual void summarise_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                  const Tensor& d_initial, Tensors work) const = 0;
  virtual void backward_to(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                           const Tensor& d_final, Tensors work) const = 0;
  // Adds what backward_to would have added for d_final.
  virtual void add_final_state_gradient(const Pass& pass, const BackwardTensors& tensors, const Tensor& initial,
                                        const Tensor& d_final) const = 0;

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const final {
    forward_from(pass, in, {}, false, out, kept);
  }
  void backward(const Pass& pass, const BackwardTensors& tensors) const final {
    backward_to(pass, tensors, {}, {}, {});
  }
};

// An operation that reads some tokens in front of each of its own (token shift, a short convolution).
class HaloCore : public LocalOperation {
 public:
  virtual std::int64_t halo() const = 0;  // tokens, of the first input
  // before [batch, halo, width of the first input]: the tokens in front of the slice, of whatever document. They are
  // zero where the sample begins; null: all are. micro_batch.tokens_before says how many belong to the row's first
  // document.
  virtual void forward_after(const Pass& pass, Tensors in, const Tensor& before, Tensors out, Tensors kept) const = 0;
  // d_before: written, zero for tokens of other documents; null: not wanted.
  virtual void backward_after(const Pass& pass, const BackwardTensors& tensors, const Tensor& before,
                              const Tensor& d_before) const = 0;

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const final {
    forward_after(pass, in, {}, out, kept);
  }
  void backward(const Pass& pass, const BackwardTensors& tensors) const final { backward_after(pass, tensors, {}, {}); }
  // The last `halo` tokens, the newest last.
  std::vector<StateSpec> states(std::int64_t batch, std::int64_t length, Widths in) const override;
  void step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const override;
};

// Queries of some neighbouring tokens of each row, [batch, rows, width]. Their positions in the sample, and the first
// position that each of them sees, are int64 [batch, rows]. Without positions: the positions of the keys, all of one
// document.
struct RingQueries {
  Tensor query, positions, first_visible;
  bool sees_all = false;  // every query sees every key of the block
};
// Keys and values alike.
struct RingKeys {
  Tensor key, value, positions;
};
struct RingGradients {
  Tensor output, log_sum, d_output;  // of the queries, over all keys
  Tensor d_query, d_key, d_value;    // accumulation dtype, added to
};

// Attention of every token to the tokens before it in its document. The queries of a slice meet the keys of all slices
// before it, block by block, and the blocks' results are merged. Inputs: queries, keys, values [tokens, width]; result:
// [tokens, width of the queries and values].
class RingCore : public LocalOperation {
 public:
  // int64 [batch, length]: the first position that each token of this slice sees.
  virtual void find_first_visible(const Pass& pass, const Tensor& first) const = 0;
  // Numbers of a token that results are merged by, accumulation dtype [batch, log_sums, rows].
  virtual std::int64_t log_sums(Widths in) const = 0;
  // Over one block of keys; output as the queries.
  virtual void forward_block(const Execution& execution, const RingQueries& queries, const RingKeys& keys,
                             const Tensor& output, const Tensor& log_sum) const = 0;
  // Merges a block's result into the result of the blocks before, in the accumulation dtype.
  virtual void merge_block(const Execution& execution, const Tensor& block_output, const Tensor& block_log_sum,
                           bool first, const Tensor& output, const Tensor& log_sum) const = 0;
  virtual void backward_block(const Execution& execution, const RingQueries& queries, const RingKeys& keys,
                              const RingGradients& gradients) const = 0;
};

// An operation on a stack of parameters that several ranks own in parts (experts). Each owner runs it for the tokens of
// all owners and with its own items only. Results are sums over the items, so that the owners' results sum to the
// whole. It may look at no other token, and at nothing of the micro-batch.
class OwnedOperation : public LocalOperation {
 public:
  // in, out: [tokens, width] each, parameters with the items `owned` of their stacks. out: written, the sum over these.
  virtual void forward_owned(const Execution& execution, IndexRange owned, Tensors in, Tensors out) const = 0;
  // d_in: written for activations, the gradients through these items; added to for parameters.
  virtual void backward_owned(const Execution& execution, IndexRange owned, const BackwardTensors& tensors) const = 0;
  virtual std::int64_t items() const = 0;

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const final {
    (void)kept;
    forward_owned(pass.execution, {0, items()}, in, out);
  }
  void backward(const Pass& pass, const BackwardTensors& tensors) const final {
    backward_owned(pass.execution, {0, items()}, tensors);
  }
};

}  // namespace fulmen
