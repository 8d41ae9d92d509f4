// The properties of a GPU that the paths for Hopper ask for.
#pragma once

#include "framework/cuda_check.h"

namespace fulmen::cuda::hopper {

struct DeviceLimits {
  bool hopper = false;
  int multiprocessors = 1;
};

// A process has GPUs of the same kind: the first device that is asked for stands for all.
inline const DeviceLimits& limits(int device) {
  static const DeviceLimits found = [device] {
    int major = 0, minor = 0, multiprocessors = 1;
    FULMEN_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    FULMEN_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    FULMEN_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    return DeviceLimits{major == 9 && minor == 0, multiprocessors};
  }();
  return found;
}

}  // namespace fulmen::cuda::hopper
