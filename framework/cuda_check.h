// Turns errors of the CUDA runtime into exceptions. Included only where CUDA is built.
#pragma once

#include <cuda_runtime_api.h>

#include "framework/error.h"

namespace fulmen::gpu {

[[noreturn]] inline void throw_cuda_error(cudaError_t status, const char* what, const char* file, int line) {
  throw InternalError(
      fmt::format("{}:{}: {}: {} ({})", file, line, what, cudaGetErrorString(status), cudaGetErrorName(status)));
}

}  // namespace fulmen::gpu

#define FULMEN_CUDA_CHECK(call)                                                          \
  do {                                                                                   \
    if (const cudaError_t cuda_status = (call); cuda_status != cudaSuccess) [[unlikely]] \
      ::fulmen::gpu::throw_cuda_error(cuda_status, #call, __FILE__, __LINE__);           \
  } while (false)

// After a kernel launch: what was wrong with its configuration, or a failure of earlier work.
#define FULMEN_CUDA_CHECK_LAUNCH() FULMEN_CUDA_CHECK(cudaGetLastError())
