// Picks the backend that runs a kernel, and the argument checks that all backends share.
#pragma once

#include <concepts>
#include <initializer_list>

#include "framework/error.h"
#include "framework/execution.h"
#include "framework/gpu.h"
#include "kernels/activation.h"
#include "kernels/backends.h"

namespace fulmen {

// The implementations of a kernel that take scratch memory, which planning (MemoryLedger) must count. They are called
// for it, and return when they have taken all of it.
enum class Scratch : std::uint8_t {
  none,
  on_cpu,      // scratch of the GPU's implementation is not counted
  everywhere,  // on the CPU and on a GPU
};

// Sums over rows take some, where they are asked for.
inline Scratch scratch_of_sums(const Tensor& sums) { return sums ? Scratch::on_cpu : Scratch::none; }

// The least work of a call, for the profiler: its time is held against the floor that this sets.
struct Work {
  const char* kernel;       // the name it is reported under
  double operations = 0.0;  // of matrix products; elementwise arithmetic hides behind traffic
  double bytes = 0.0;       // read or written once
  Scratch scratch = Scratch::none;
};

inline double traffic(std::initializer_list<Tensor> tensors) {
  double bytes = 0.0;
  for (const Tensor& tensor : tensors) bytes += static_cast<double>(tensor.bytes());
  return bytes;
}

// Runs the callable of the kernel's device; without CUDA in the build never `cuda`. Where memory is planned alone, only
// kernels with scratch memory run.
template <std::invocable Cpu, std::invocable Cuda>
void run_on_device(const Execution& execution, const Work& work, Cpu&& cpu, Cuda&& cuda) {
  if (execution.plans()) {
    if (execution.device.kind == DeviceKind::cpu && work.scratch != Scratch::none) cpu();
    if constexpr (gpu::built)
      if (execution.device.kind == DeviceKind::cuda && work.scratch == Scratch::everywhere) cuda();
    return;
  }
  if (execution.device.kind == DeviceKind::cpu) {
    const ProfileScope scope(execution.profiler, work.kernel, work.operations, work.bytes);
    return cpu();
  }
  if constexpr (gpu::built) {
    const ProfileScope scope(execution.profiler, work.kernel, work.operations, work.bytes);
    cuda();
  } else {
    gpu::require(execution.device);
  }
}

// Runs a kernel of the table on the device.
template <class... Parameters, class... Arguments>
void run_on_device(const Execution& execution, const Work& work,
                   const Backends<void(const Execution&, Parameters...)>& kernel, const Arguments&... arguments) {
  run_on_device(
      execution, work, [&] { kernel.cpu(execution, arguments...); }, [&] { kernel.cuda(execution, arguments...); });
}

// Rows of unit inner stride: every kernel accepts them but for the kernels over contiguous tensors.
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

// An activation that gates know.
inline void check_gate_activation(Activation activation) {
  FULMEN_CHECK(is_gate_activation(activation), "activation {} is none of a gate", static_cast<int>(activation));
}

}  // namespace fulmen
