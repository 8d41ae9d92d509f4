// Launches that do not wait for the launch before. On Hopper a kernel's blocks are set up while the kernel before it in
// the stream still runs (programmatic dependent launch). That hides two or three microseconds where kernels are that
// short.
#pragma once

#include <cuda_runtime.h>

#include "framework/cuda_check.h"
#include "framework/execution.h"
#include "framework/gpu.h"

namespace fulmen::cuda {

// Every thread of a kernel launched so calls it first. Afterwards the results of the kernels before are there, and
// their inputs may be overwritten.
__device__ __forceinline__ void await_kernel_before() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

inline bool launches_early(int device) {
  static const int major = gpu::properties(device).major;  // of this process's GPUs
  return major >= 9;
}

// kernel<<<grid, threads, 0, stream>>>(arguments...) for a kernel that begins with await_kernel_before().
template <class... Parameters, class... Arguments>
void launch_early(const Execution& execution, dim3 grid, int threads, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = grid;
  configuration.blockDim = dim3(static_cast<unsigned>(threads));
  configuration.stream = static_cast<cudaStream_t>(execution.stream.handle);
  configuration.attrs = &attribute;
  configuration.numAttrs = launches_early(execution.device.index) ? 1 : 0;
  FULMEN_CUDA_CHECK(cudaLaunchKernelEx(&configuration, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace fulmen::cuda
