// Copies between host memory and a device.
#include "framework/transfer.h"

#include <cstring>

namespace fulmen {

namespace {
void require_cpu(const Execution& execution) {
  if (execution.device.kind != DeviceKind::cpu)
    throw UserError("run.device", "this build has no CUDA support", "use device: cpu, or build with the cuda preset");
}
}  // namespace

void copy_to_device(const Execution& execution, const void* host, const Tensor& device_tensor) {
  FULMEN_CHECK(device_tensor.is_contiguous(), "copy to a strided tensor {}", device_tensor.describe());
  require_cpu(execution);
  if (device_tensor.elements() > 0) std::memcpy(device_tensor.data(), host, device_tensor.bytes());
}

void copy_to_host(const Execution& execution, const Tensor& device_tensor, void* host) {
  FULMEN_CHECK(device_tensor.is_contiguous(), "copy from a strided tensor {}", device_tensor.describe());
  require_cpu(execution);
  if (device_tensor.elements() > 0) std::memcpy(host, device_tensor.data(), device_tensor.bytes());
}

}  // namespace fulmen
