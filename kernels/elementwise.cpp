// Argument checks and dispatch of the plain passes over memory.
#include "kernels/elementwise.h"

#include "kernels/dispatch.h"

namespace fulmen {
namespace {

void check_contiguous(const Tensor& x, const char* name) {
  FULMEN_CHECK(x.elements() == 0 || x.is_contiguous(), "{} is not contiguous", name);
}

}  // namespace

void fill_zero(const Execution& execution, const Tensor& x) {
  check_contiguous(x, "x");
  if (x.elements() == 0) return;
  run_on_device(execution, {"fill", 0.0, traffic({x})}, backends::fill_zero, x);
}

void add(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& out) {
  check_contiguous(a, "a"), check_contiguous(b, "b"), check_contiguous(out, "out");
  check_dtype(b, a.dtype(), "b"), check_dtype(out, a.dtype(), "out");
  check_shape(b, a.shape(), "b"), check_shape(out, a.shape(), "out");
  if (a.elements() == 0) return;
  run_on_device(execution, {"add", 0.0, traffic({a, b, out})}, backends::add, a, b, out);
}

void add_scaled(const Execution& execution, const Tensor& a, double a_scale, const Tensor& b, double b_scale,
                const Tensor& out) {
  check_contiguous(a, "a"), check_contiguous(b, "b"), check_contiguous(out, "out");
  check_dtype(b, a.dtype(), "b"), check_dtype(out, a.dtype(), "out");
  check_shape(b, a.shape(), "b"), check_shape(out, a.shape(), "out");
  if (a.elements() == 0) return;
  run_on_device(execution, {"add", 0.0, traffic({a, b, out})}, backends::add_scaled, a, a_scale, b, b_scale, out);
}

void add_to(const Execution& execution, const Tensor& out, const Tensor& a) {
  FULMEN_CHECK(out.rank() == 2, "out is {}, expected a matrix", out.describe());
  check_matrix(out, out.dtype(), out.size(0), out.size(1), "out");
  check_matrix(a, out.dtype(), out.size(0), out.size(1), "a");
  if (out.elements() == 0) return;
  run_on_device(execution, {"add", 0.0, traffic({a, out, out})}, backends::add_to, out, a);
}

void sum_parts(const Execution& execution, std::span<const Tensor> parts, const Tensor& out) {
  FULMEN_CHECK(!parts.empty() && parts.size() <= most_parts, "{} parts of a sum", parts.size());
  check_contiguous(out, "out");
  double bytes = traffic({out});
  for (const Tensor& part : parts) {
    check_contiguous(part, "a part"), check_dtype(part, out.dtype(), "a part"),
        check_shape(part, out.shape(), "a part");
    bytes += traffic({part});
  }
  if (out.elements() == 0) return;
  if (parts.size() == 2) return add(execution, parts[0], parts[1], out);
  run_on_device(execution, {"sum of parts", 0.0, bytes}, backends::sum_parts, parts, out);
}

void scale(const Execution& execution, const Tensor& x, double factor) {
  check_contiguous(x, "x");
  if (x.elements() == 0) return;
  run_on_device(execution, {"scale", 0.0, traffic({x, x})}, backends::scale, x, factor);
}

void copy(const Execution& execution, const Tensor& from, const Tensor& to) {
  check_shape(to, from.shape(), "to");
  if (from.elements() == 0) return;
  check_unit_inner_stride(from, "from"), check_unit_inner_stride(to, "to");
  FULMEN_CHECK(from.dtype() == to.dtype() || (is_floating(from.dtype()) && is_floating(to.dtype())),
               "no conversion from {} to {}", name_of(from.dtype()), name_of(to.dtype()));
  run_on_device(execution, {"copy", 0.0, traffic({from, to})}, backends::copy, from, to);
}

void add_sum_of_squares(const Execution& execution, const Tensor& x, const Tensor& total) {
  check_contiguous(x, "x");
  check_vector(total, DType::fp64, 1, "total");
  if (x.elements() == 0) return;
  run_on_device(execution, {"gradient norm", 0.0, traffic({x}), Scratch::on_cpu}, backends::add_sum_of_squares, x,
                total);
}

void add_sum(const Execution& execution, const Tensor& x, const Tensor& total) {
  check_contiguous(x, "x");
  check_vector(total, DType::fp64, 1, "total");
  if (x.elements() == 0) return;
  check_dtype(x, DType::fp64, "x");
  run_on_device(execution, {"loss sum", 0.0, traffic({x}), Scratch::on_cpu}, backends::add_sum, x, total);
}

}  // namespace fulmen
