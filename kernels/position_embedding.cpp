// Argument checks and dispatch of learned positions.
#include "kernels/position_embedding.h"

#include "kernels/dispatch.h"

namespace fulmen {

namespace {

void check_positions(const Tensor& positions, const Tensor& tokens, const Tensor& weight) {
  check_dtype(positions, DType::int64, "positions");
  FULMEN_CHECK(positions.rank() == 2 && positions.is_contiguous(), "positions are {}", positions.describe());
  FULMEN_CHECK(weight.rank() == 2, "weight is {}, expected a matrix", weight.describe());
  check_matrix(weight, weight.dtype(), weight.size(0), weight.size(1), "weight");
  check_matrix(tokens, tokens.dtype(), positions.elements(), weight.size(1), "tokens");
}

}  // namespace

void position_embedding_forward(const Execution& execution, const Tensor& positions, const Tensor& weight,
                                const Tensor& out) {
  check_positions(positions, out, weight);
  check_dtype(out, weight.dtype(), "out");
  if (out.elements() == 0) return;
  run_on_device(execution, {"position embedding forward", 0.0, traffic({out, out, out})},
                backends::position_embedding_forward, positions, weight, out);
}

void position_embedding_backward(const Execution& execution, const Tensor& positions, const Tensor& d_out,
                                 const Tensor& d_weight) {
  check_positions(positions, d_out, d_weight);
  FULMEN_CHECK(size_of(d_weight.dtype()) >= size_of(d_out.dtype()), "d_weight is narrower than d_out");
  if (d_out.elements() == 0) return;
  run_on_device(execution, {"position embedding backward", 0.0, traffic({d_out})},
                backends::position_embedding_backward, positions, d_out, d_weight);
}

}  // namespace fulmen
