// Plain passes over memory, on a GPU. See kernels/elementwise.h.
#pragma once

#include <span>

#include "framework/execution.h"

namespace fulmen::cuda {

void fill_zero(const Execution& execution, const Tensor& x);
void add(const Execution& execution, const Tensor& a, const Tensor& b, const Tensor& out);
void add_to(const Execution& execution, const Tensor& out, const Tensor& a);
void sum_parts(const Execution& execution, std::span<const Tensor> parts, const Tensor& out);
void scale(const Execution& execution, const Tensor& x, double factor);
void copy(const Execution& execution, const Tensor& from, const Tensor& to);
void add_sum_of_squares(const Execution& execution, const Tensor& x, const Tensor& total);
void add_sum(const Execution& execution, const Tensor& x, const Tensor& total);

}  // namespace fulmen::cuda
