// The local arithmetic that branches are made of. An operation knows no other rank. It reads and writes tensors of this
// rank. It says what its results are, how long they are needed and what they cost. Operations are constant: what they
// keep of a micro-batch lies in tensors that the executor of the branch gives them. They touch elements by kernels
// alone: whatever else does so returns where Execution::plans().
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "framework/execution.h"
#include "model/keep.h"
#include "model/micro_batch.h"

namespace fulmen {

// Columns of an operation's inputs, in their order: of this rank, or of all tensor ranks together where a whole
// model is counted. A parameter or a constant has its elements per unit of the tensor axis as columns.
using Widths = std::span<const std::int64_t>;
using Tensors = std::span<const Tensor>;

enum class PortType : std::uint8_t { activation, accumulation };

// A result: a matrix with a row for each token of the micro-batch.
struct Port {
  PortType type = PortType::activation;
  std::int64_t width = 0;  // columns, as the widths of the inputs are
  Keep keep = Keep::all;
  bool differentiable = true;  // false: no gradient is formed for it
  // The input whose place it takes, of the same width, which nothing else reads: forward and backward write where they
  // read. It is kept as long as the input would be. -1: it has memory of its own.
  int in_place_of = -1;
};

// Further memory that an operation wants from its forward to its backward pass, of any shape.
struct KeptTensor {
  PortType type = PortType::accumulation;
  Shape shape;
  Keep keep = Keep::all;
};

// The state that a token hands to the next token in decoding, for a batch of rows.
struct StateSpec {
  PortType type = PortType::accumulation;
  Shape shape;
};

// For a forward pass, per token. Operations count a multiplication and an addition as two.
struct Costs {
  double operations = 0.0;
  double backward_operations = 0.0;
};

// Where an operation is to run, before it does.
struct PassShape {
  const Execution& execution;
  BatchShape shape;
  DType activation = DType::fp32;  // of activations; results of PortType::accumulation are in its accumulation dtype
};

struct Pass {
  const Execution& execution;
  const MicroBatch& micro_batch;
};

// The tensors of a backward pass, in the orders of inputs, results and kept tensors.
struct BackwardTensors {
  Tensors in;   // as forward read them
  Tensors out;  // as forward wrote them; an output that is remade must be written, where its gradient stands
  Tensors kept;
  Tensors d_out;
  Tensors d_in;  // written; for parameters added to. Null where no gradient is wanted.
};

class LocalOperation {
 public:
  virtual ~LocalOperation() = default;

  virtual std::vector<Port> outputs(Widths in) const = 0;
  virtual Costs costs(std::int64_t length, Widths in) const = 0;

  virtual std::vector<KeptTensor> kept(const PassShape& where, Widths in) const {
    (void)where, (void)in;
    return {};
  }
  // Results that nothing reads may be null when a pass is run again.
  virtual void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const = 0;
  virtual void backward(const Pass& pass, const BackwardTensors& tensors) const = 0;

  // Decoding. `length`: the most tokens that a text may have. An operation without states looks at no other token.
  virtual std::vector<StateSpec> states(std::int64_t batch, std::int64_t length, Widths in) const {
    (void)batch, (void)length, (void)in;
    return {};
  }
  // forward for one token of each row (length 1), reading and advancing the states.
  virtual void step(const Pass& pass, Tensors in, Tensors out, Tensors kept, Tensors states) const {
    (void)states;
    forward(pass, in, out, kept);
  }
};

// An operation with a sum over all columns of a token in its middle, which tensor ranks hold parts of. The executor
// adds the parts up; without other ranks it gives null, and the operation forms the sums on its way.
class SpanningOperation : public LocalOperation {
 public:
  // sums [tokens], accumulation dtype: this rank's share.
  virtual void forward_sums(const Pass& pass, Tensors in, const Tensor& sums) const = 0;
  virtual void forward_with(const Pass& pass, Tensors in, const Tensor& sums, Tensors out, Tensors kept) const = 0;
  virtual void backward_sums(const Pass& pass, const BackwardTensors& tensors, const Tensor& sums) const = 0;
  virtual void backward_with(const Pass& pass, const BackwardTensors& tensors, const Tensor& sums) const = 0;

  void forward(const Pass& pass, Tensors in, Tensors out, Tensors kept) const final {
    forward_with(pass, in, {}, out, kept);
  }
  void backward(const Pass& pass, const BackwardTensors& tensors) const final { backward_with(pass, tensors, {}); }
};

// A term of the training loss that a layer forms, such as a router's. For each sample it is a function of sums over its
// tokens. So it is the same however samples are cut and dealt out.
class LossOperation {
 public:
  virtual ~LossOperation() = default;
  // Columns of the sums of a sample.
  virtual std::int64_t statistics(Widths in) const = 0;
  // sums [batch, statistics], fp64: over this rank's tokens of each sample.
  virtual void summarise(const Pass& pass, Tensors in, const Tensor& sums) const = 0;
  // Adds scale * sum over the samples of the loss to `loss` (fp64 [1]); sums run over whole samples.
  virtual void add_loss(const Pass& pass, const Tensor& sums, double scale, const Tensor& loss) const = 0;
  // d_in: written, the gradient of scale * the loss.
  virtual void backward(const Pass& pass, Tensors in, const Tensor& sums, double scale, Tensors d_in) const = 0;
};

}  // namespace fulmen
