// The backends of the kernels. A kernel's signature stands once, in its family's header. FULMEN_BACKENDS after it
// declares the same function in cpu:: (kernels/cpu/) and in cuda:: (kernels/cuda/). It enters both in a table from
// which run_on_device (kernels/dispatch.h) picks.
#pragma once

namespace fulmen {

template <class Signature>
struct Backends {
  Signature* cpu;
  Signature* cuda;  // null in a build without CUDA
};

}  // namespace fulmen

#ifdef FULMEN_CUDA
#define FULMEN_CUDA_BACKEND(kernel) cuda::kernel
#else
#define FULMEN_CUDA_BACKEND(kernel) nullptr
#endif

// NOLINTBEGIN(bugprone-macro-parentheses): the argument is a declared name
// In namespace fulmen, after the declaration of `kernel`, which must not be overloaded.
#define FULMEN_BACKENDS(kernel)                                                                         \
  namespace cpu {                                                                                       \
  decltype(fulmen::kernel) kernel;                                                                      \
  }                                                                                                     \
  namespace cuda {                                                                                      \
  decltype(fulmen::kernel) kernel;                                                                      \
  }                                                                                                     \
  namespace backends {                                                                                  \
  inline constexpr Backends<decltype(fulmen::kernel)> kernel{cpu::kernel, FULMEN_CUDA_BACKEND(kernel)}; \
  }                                                                                                     \
  static_assert(true)
// NOLINTEND(bugprone-macro-parentheses)
