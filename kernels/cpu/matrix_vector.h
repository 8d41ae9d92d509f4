// Products of a few rows with a large matrix, as decoding has them: bound by reading the matrix once.
#pragma once

#include "framework/tensor.h"

namespace fulmen::cpu {

// The most rows of x for which this is faster than a general product.
inline constexpr std::int64_t few_rows = 4;

// y [rows, n] = x [rows, k] W^T with W [n, k]; rows <= few_rows; fp32 or fp64, unit inner strides.
void few_rows_times_matrix(const Tensor& x, const Tensor& weight, const Tensor& y);

}  // namespace fulmen::cpu
