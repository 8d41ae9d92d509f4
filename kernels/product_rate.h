// The rate of matrix products that a device reaches, measured: what a run's utilisation is held against.
#pragma once

#include <cstdint>
#include <functional>

#include "framework/execution.h"

namespace fulmen {

// Order of the square matrices below: large enough to fill the device.
std::int64_t rate_matrix_order(Device device);

// Operations per second of products of square matrices of random numbers, over a tenth of a second after one product
// that does not count. `ready` is called before the clock starts: ranks that are to run at once wait there for each
// other. dtype: fp64, fp32 or, on a GPU, bf16.
double measure_product_rate(const Execution& execution, DType dtype, const std::function<void()>& ready);

}  // namespace fulmen
