// Copies between host memory and a device.
#include "framework/transfer.h"

#include <cstring>

#include "framework/gpu.h"

namespace fulmen {

void copy_to_device(const Execution& execution, const void* host, const Tensor& device_tensor) {
  FULMEN_CHECK(device_tensor.is_contiguous(), "copy to a strided tensor {}", device_tensor.describe());
  if (device_tensor.elements() == 0 || execution.plans()) return;
  if (execution.device.kind == DeviceKind::cuda)
    gpu::copy(execution.stream, device_tensor.data(), host, device_tensor.bytes());
  else
    std::memcpy(device_tensor.data(), host, device_tensor.bytes());
}

void copy_to_host(const Execution& execution, const Tensor& device_tensor, void* host) {
  FULMEN_CHECK(device_tensor.is_contiguous(), "copy from a strided tensor {}", device_tensor.describe());
  if (device_tensor.elements() == 0 || execution.plans()) return;
  if (execution.device.kind == DeviceKind::cuda) {
    gpu::copy(execution.stream, host, device_tensor.data(), device_tensor.bytes());
    gpu::synchronize(execution.stream);
  } else {
    std::memcpy(host, device_tensor.data(), device_tensor.bytes());
  }
}

}  // namespace fulmen
