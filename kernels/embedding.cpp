// Argument checks and dispatch of the embedding.
#include "kernels/embedding.h"

#include <algorithm>

#include "kernels/dispatch.h"

namespace fulmen {

void embedding_forward(const Execution& execution, const Tensor& tokens, const Tensor& weight, std::int64_t first,
                       double scale, const Tensor& out) {
  FULMEN_CHECK(weight.rank() == 2, "weight is {}, expected a matrix", weight.describe());
  check_matrix(weight, weight.dtype(), weight.size(0), weight.size(1), "weight");
  check_vector(tokens, DType::int32, tokens.elements(), "tokens");
  check_matrix(out, weight.dtype(), tokens.elements(), weight.size(1), "out");
  if (out.elements() == 0) return;
  run_on_device(execution, {"embedding forward", 0.0, traffic({out, out})}, backends::embedding_forward, tokens, weight,
                first, scale, out);
}

void embedding_backward(const Execution& execution, const Tensor& tokens, const TokenOrder& order, const Tensor& d_out,
                        std::int64_t first, double scale, const Tensor& d_weight) {
  FULMEN_CHECK(d_weight.rank() == 2, "d_weight is {}, expected a matrix", d_weight.describe());
  check_matrix(d_weight, d_weight.dtype(), d_weight.size(0), d_weight.size(1), "d_weight");
  check_vector(tokens, DType::int32, tokens.elements(), "tokens");
  check_vector(order.positions, DType::int32, tokens.elements(), "order");
  FULMEN_CHECK(order.distinct >= 0 && order.distinct <= tokens.elements(), "{} distinct of {} tokens", order.distinct,
               tokens.elements());
  FULMEN_CHECK(order.longest_run <= tokens.elements() && order.longest_run >= (tokens.elements() > 0 ? 1 : 0),
               "a longest run of {} of {} tokens", order.longest_run, tokens.elements());
  check_matrix(d_out, d_out.dtype(), tokens.elements(), d_weight.size(1), "d_out");
  FULMEN_CHECK(size_of(d_weight.dtype()) >= size_of(d_out.dtype()), "d_weight is narrower than d_out");
  if (d_out.elements() == 0) return;
  // Each row that is added to is read and written. With a split vocabulary this counts other ranks' tokens, too.
  const auto touched = static_cast<double>(std::min(order.distinct, d_weight.size(0)) * d_weight.size(1));
  const double rows = 2.0 * touched * static_cast<double>(size_of(d_weight.dtype()));
  run_on_device(execution, {"embedding backward", 0.0, traffic({d_out}) + rows}, backends::embedding_backward, tokens,
                order, d_out, first, scale, d_weight);
}

}  // namespace fulmen
