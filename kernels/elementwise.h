// Plain passes over memory.
#pragma once

#include <span>

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

void fill_zero(const Execution& execution, const Tensor& x);  // contiguous, any dtype
FULMEN_BACKENDS(fill_zero);
void add(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& out);  // out = a + b, contiguous
FULMEN_BACKENDS(add);
// out = a_scale a + b_scale b, contiguous. out may be a or b.
void add_scaled(const Execution& execution, const Tensor& a, double a_scale, const Tensor& b, double b_scale,
                const Tensor& out);
FULMEN_BACKENDS(add_scaled);
// out += a; matrices of equal shape, unit inner stride, any row strides.
void add_to(const Execution& execution, const Tensor& out, const Tensor& a);
FULMEN_BACKENDS(add_to);
// out = the sum of 1 to most_parts parts, added in their order in fp32, or fp64, and rounded to their dtype at the end.
// All are contiguous, and out may alias a part.
inline constexpr int most_parts = 8;
void sum_parts(const Execution& execution, std::span<const Tensor> parts, const Tensor& out);
FULMEN_BACKENDS(sum_parts);
void scale(const Execution& execution, const Tensor& x, double factor);  // x *= factor, contiguous
FULMEN_BACKENDS(scale);
// Copies between equal shapes, converting the dtype; unit inner stride, any outer strides.
void copy(const Execution& execution, const Tensor& from, const Tensor& to);
FULMEN_BACKENDS(copy);
// total [1], fp64: += sum of squares of x (flat), accumulated in fp64. The result does not depend on the thread count.
void add_sum_of_squares(const Execution& execution, const Tensor& x, const Tensor& total);
FULMEN_BACKENDS(add_sum_of_squares);

// total [1], fp64: += sum of x (flat, fp64), in a fixed order.
void add_sum(const Execution& execution, const Tensor& x, const Tensor& total);
FULMEN_BACKENDS(add_sum);

}  // namespace fulmen
