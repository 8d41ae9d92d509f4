// Copies between host memory and a device, in stream order. Where memory is planned alone, nothing is copied.
#pragma once

#include "framework/execution.h"

namespace fulmen {

// `host` holds device_tensor.bytes() bytes and may be reused when the call returns. The tensor is contiguous.
void copy_to_device(const Execution& execution, const void* host, const Tensor& device_tensor);
// Complete when the call returns: waits for the stream.
void copy_to_host(const Execution& execution, const Tensor& device_tensor, void* host);

}  // namespace fulmen
