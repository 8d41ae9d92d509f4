// Picks the backend that runs a kernel, and the argument checks that all backends share.
#pragma once

#include <initializer_list>

#include "framework/error.h"
#include "framework/execution.h"

namespace fulmen {

// What a call has to do at the least, for the profiler: its time is held against the floor that this sets.
struct Work {
  const char* kernel;         // the name it is reported under
  double operations = 0.0;    // of matrix products; elementwise arithmetic hides behind traffic
  double bytes = 0.0;         // read or written once
};

inline double traffic(std::initializer_list<Tensor> tensors) {
  double bytes = 0.0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

// Runs `cpu` when the kernel's device is the CPU. A backend is added by one more callable.
template <class Cpu>
void run_on_device(const Execution& execution, const Work& work, Cpu&& cpu) {
  const ProfileScope scope(execution.profiler, work.kernel, work.operations, work.bytes);
  if (execution.device.kind == DeviceKind::cpu) return cpu();
  throw UserError("run.device", "this build has no CUDA support", "set run.device to cpu, or build with CUDA");
}

// Rows of unit inner stride: what every kernel but the contiguous ones accepts.
inline void check_unit_inner_stride(const Tensor& x, const char* name) {
  FULMEN_CHECK(x.rank() > 0 && (x.size(-1) <= 1 || x.stride(-1) == 1), "{} has inner stride {}, expected 1", name,
               x.stride(-1));
}

inline void check_dtype(const Tensor& x, DType dtype, const char* name) {
  FULMEN_CHECK(x.dtype() == dtype, "{} is {}, expected {}", name, name_of(x.dtype()), name_of(dtype));
}

inline void check_shape(const Tensor& x, const Shape& shape, const char* name) {
  FULMEN_CHECK(x.shape() == shape, "{} is {}, expected {}", name, to_string(x.shape()), to_string(shape));
}

// A matrix [rows, columns] of the given dtype, unit inner stride, any row stride.
inline void check_matrix(const Tensor& x, DType dtype, std::int64_t rows, std::int64_t columns, const char* name) {
  check_dtype(x, dtype, name);
  check_shape(x, {rows, columns}, name);
  check_unit_inner_stride(x, name);
}

// A contiguous vector [length] of the given dtype.
inline void check_vector(const Tensor& x, DType dtype, std::int64_t length, const char* name) {
  check_dtype(x, dtype, name);
  check_shape(x, {length}, name);
  FULMEN_CHECK(x.is_contiguous(), "{} is not contiguous", name);
}

}  // namespace fulmen
