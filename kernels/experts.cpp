// Argument checks and dispatch of the mixture of experts.
#include "kernels/experts.h"

#include "kernels/dispatch.h"

namespace fulmen {

namespace {

void check_table(const Tensor& table, DType dtype, const Shape& shape, const char* name) {
  check_dtype(table, dtype, name);
  check_shape(table, shape, name);
  FULMEN_CHECK(table.is_contiguous(), "{} is not contiguous", name);
}

void check_places(const ExpertOrder& order, const Tensor& weights, const Tensor& x) {
  check_matrix(x, x.dtype(), x.size(0), x.size(1), "x");
  FULMEN_CHECK(x.size(0) <= order.tokens.size(0), "{} rows for {} places", x.size(0), order.tokens.size(0));
  check_table(weights, accumulation_dtype(x.dtype()), weights.shape(), "weights");
}

}  // namespace

void router_forward(const Execution& execution, const Tensor& logits, std::int64_t chosen, const Tensor& probabilities,
                    const Tensor& weights) {
  FULMEN_CHECK(logits.rank() == 2 && chosen >= 1 && chosen <= logits.size(1), "{} chosen of logits {}", chosen,
               logits.describe());
  check_matrix(logits, logits.dtype(), logits.size(0), logits.size(1), "logits");
  check_table(probabilities, accumulation_dtype(logits.dtype()), logits.shape(), "probabilities");
  check_table(weights, accumulation_dtype(logits.dtype()), logits.shape(), "weights");
  if (logits.elements() == 0) return;
  run_on_device(execution, {"router forward", 0.0, traffic({logits, probabilities, weights})}, backends::router_forward,
                logits, chosen, probabilities, weights);
}

void router_backward(const Execution& execution, const Tensor& probabilities, const Tensor& weights,
                     const Tensor& d_probabilities, const Tensor& d_weights, const Tensor& d_logits) {
  check_table(probabilities, probabilities.dtype(), d_logits.shape(), "probabilities");
  check_table(weights, probabilities.dtype(), d_logits.shape(), "weights");
  for (const Tensor& gradient : {d_probabilities, d_weights})
    if (gradient) check_table(gradient, probabilities.dtype(), d_logits.shape(), "a gradient");
  check_matrix(d_logits, d_logits.dtype(), d_logits.size(0), d_logits.size(1), "d_logits");
  if (d_logits.elements() == 0) return;
  run_on_device(execution,
                {"router backward", 0.0, traffic({probabilities, weights, d_probabilities, d_weights, d_logits})},
                backends::router_backward, probabilities, weights, d_probabilities, d_weights, d_logits);
}

void order_by_expert(const Execution& execution, const Tensor& weights, std::int64_t first, std::int64_t chosen,
                     std::int64_t alignment, const ExpertOrder& order) {
  const std::int64_t tokens = weights.size(0), owned = order.offsets.size(0) - 1;
  FULMEN_CHECK(alignment >= 1, "an alignment of {}", alignment);
  const std::int64_t places = most_expert_places(tokens, chosen, owned, alignment);
  check_table(weights, weights.dtype(), {tokens, weights.size(1)}, "weights");
  check_table(order.tokens, DType::int32, {places}, "tokens");
  check_table(order.experts, DType::int32, {places}, "experts");
  check_table(order.places, DType::int32, {tokens, chosen}, "places");
  check_table(order.offsets, DType::int64, {owned + 1}, "offsets");
  FULMEN_CHECK(first >= 0 && owned >= 0 && first + owned <= weights.size(1), "experts from {}, {} of {}", first, owned,
               weights.size(1));
  FULMEN_CHECK(places < (std::int64_t{1} << 31), "{} places of experts", places);
  run_on_device(execution, {"order by expert", 0.0, traffic({weights, order.tokens, order.experts, order.places})},
                backends::order_by_expert, weights, first, chosen, alignment, order);
}

void gather_rows(const Execution& execution, const Tensor& x, const Tensor& tokens, const Tensor& y) {
  check_matrix(x, x.dtype(), x.size(0), x.size(1), "x");
  check_matrix(y, x.dtype(), y.size(0), x.size(1), "y");
  FULMEN_CHECK(tokens.size(0) >= y.size(0), "{} tokens for {} rows", tokens.size(0), y.size(0));
  if (y.elements() == 0) return;
  run_on_device(execution, {"gather rows", 0.0, traffic({y, y})}, backends::gather_rows, x, tokens, y);
}

void combine_rows(const Execution& execution, const Tensor& y, const Tensor& places, const Tensor& out) {
  check_matrix(y, out.dtype(), y.size(0), out.size(1), "y");
  check_matrix(out, out.dtype(), places.size(0), out.size(1), "out");
  if (out.elements() == 0) return;
  run_on_device(execution, {"combine rows", 0.0, traffic({y, out})}, backends::combine_rows, y, places, out);
}

void weigh_rows(const Execution& execution, const ExpertOrder& order, const Tensor& weights, std::int64_t first,
                const Tensor& x) {
  check_places(order, weights, x);
  if (x.elements() == 0) return;
  run_on_device(execution, {"weigh rows", 0.0, traffic({x, x})}, backends::weigh_rows, order, weights, first, x);
}

void weigh_rows_backward(const Execution& execution, const ExpertOrder& order, const Tensor& weights,
                         std::int64_t first, const Tensor& d_y, const Tensor& x, const Tensor& d_weights) {
  check_places(order, weights, x);
  check_matrix(d_y, x.dtype(), x.size(0), x.size(1), "d_y");
  check_table(d_weights, weights.dtype(), weights.shape(), "d_weights");
  if (x.elements() == 0) return;
  run_on_device(execution, {"weigh rows backward", 0.0, traffic({x, x, d_y, d_y})}, backends::weigh_rows_backward,
                order, weights, first, d_y, x, d_weights);
}

}  // namespace fulmen
