// Argument checks and dispatch of the matrix products.
#include "kernels/gemm.h"

#include <utility>

#include "kernels/dispatch.h"

namespace fulmen {

namespace {

// Whether it is the transposed view of a row-major matrix.
bool is_transposed(const Tensor& x) { return x.rank() == 2 && x.stride(0) == 1 && x.stride(1) != 1 && x.size(1) > 1; }

void make_row_major(Tensor& x, bool& transpose) {
  if (!is_transposed(x)) return;
  x = x.transpose();
  transpose = !transpose;
}

void run_gemm(const Execution& execution, const char* name, Tensor a, Tensor b, const Tensor& c, GemmOptions options) {
  if (is_transposed(c)) {  // c^T = op(b)^T op(a)^T
    std::swap(a, b);
    const bool transpose_a = !options.transpose_b;
    options.transpose_b = !options.transpose_a;
    options.transpose_a = transpose_a;
    return run_gemm(execution, name, a, b, c.transpose(), options);
  }
  make_row_major(a, options.transpose_a);
  make_row_major(b, options.transpose_b);
  FULMEN_CHECK(a.rank() == 2 && b.rank() == 2 && c.rank() == 2, "gemm of {}, {} and {}", a.describe(), b.describe(),
               c.describe());
  const std::int64_t m = c.size(0), n = c.size(1), k = options.transpose_a ? a.size(0) : a.size(1);
  check_matrix(a, a.dtype(), options.transpose_a ? k : m, options.transpose_a ? m : k, "a");
  check_matrix(b, a.dtype(), options.transpose_b ? n : k, options.transpose_b ? k : n, "b");
  check_matrix(c, c.dtype(), m, n, "c");
  FULMEN_CHECK(size_of(c.dtype()) >= size_of(a.dtype()), "c is narrower than a");
  if (m == 0 || n == 0) return;
  const double operations = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  run_on_device(execution, {name, operations, traffic({a, b, c}), Scratch::everywhere}, backends::gemm, a, b, c,
                options);
}

}  // namespace

void gemm(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c, const GemmOptions& options) {
  run_gemm(execution, "product", a, b, c, options);
}

void linear_forward(const Execution& execution, const Tensor& x, const Tensor& weight, const Tensor& y) {
  run_gemm(execution, "product forward", x, weight, y, {.transpose_b = true});
}

void linear_backward_input(const Execution& execution, const Tensor& d_y, const Tensor& weight, const Tensor& d_x,
                           bool accumulate) {
  run_gemm(execution, "product backward input", d_y, weight, d_x, {.accumulate = accumulate});
}

void linear_backward_weight(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                            bool accumulate) {
  run_gemm(execution, "product backward weight", d_y, x, d_weight, {.transpose_a = true, .accumulate = accumulate});
}

}  // namespace fulmen
