// How operations that look beyond this rank's part run on the ranks that hold the rest. The parts are slices of the
// sequence, and items of stacks of parameters.
#pragma once

#include <memory>
#include <vector>

#include "model/crossing.h"
#include "model/model_context.h"

namespace fulmen {

// An operation on its slice. The tensors of `crossing` belong to it from forward to
// backward.
class Crossing {
 public:
  virtual ~Crossing() = default;
  // Results that it keeps of a micro-batch, in addition to the operation's.
  virtual std::vector<KeptTensor> kept(const BatchShape& shape, Widths in) const = 0;
  // Whether what the operation keeps is good for the backward pass of a slice.
  virtual bool keeps_own() const = 0;
  virtual void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const = 0;
  // The same from what was kept, for results that were not.
  virtual void forward_again(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors crossing) const = 0;
  virtual void backward(const Pass& pass, const BackwardTensors& tensors, Tensors crossing) const = 0;
};
// Null where this rank holds whole samples, or the operation looks at no other token.
std::unique_ptr<Crossing> make_slice_crossing(const ModelContext& context, const LocalOperation& operation);
std::unique_ptr<Crossing> make_ring_crossing(const ModelContext& context, const RingCore& core);
// owners: of the operation's stacks. activations: which inputs are matrices with a row for each token.
std::unique_ptr<Crossing> make_owner_crossing(const ModelContext& context, const OwnedOperation& operation,
                                              Communicator& owners, std::vector<bool> activations);

}  // namespace fulmen
