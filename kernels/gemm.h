// Matrix products with accumulation, and the three products of a linear layer.
#pragma once

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

struct GemmOptions {
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;  // c += product, otherwise c = product
  double alpha = 1.0;       // scales the product
};

// c [m, n] = alpha * op(a) [m, k] * op(b) [k, n] (+ c). Matrices are row-major with unit inner stride and any row
// stride, or transposed views of such. a and b share a dtype (fp32 or fp64 on the CPU). Sums accumulate in fp32 or
// wider. k = 0 gives zero (or leaves c).
void gemm(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& c,
          const GemmOptions& options = {});
FULMEN_BACKENDS(gemm);

// A linear layer y = x W^T, with W [out, in] as PyTorch keeps it. x [tokens, in], y [tokens, out].
void linear_forward(const Execution& execution, const Tensor& x, const Tensor& weight, const Tensor& y);
// d_x = d_y W (+ d_x).
void linear_backward_input(const Execution& execution, const Tensor& d_y, const Tensor& weight, const Tensor& d_x,
                           bool accumulate = false);
// d_weight += d_y^T x, or the product alone.
void linear_backward_weight(const Execution& execution, const Tensor& d_y, const Tensor& x, const Tensor& d_weight,
                            bool accumulate = true);

}  // namespace fulmen
