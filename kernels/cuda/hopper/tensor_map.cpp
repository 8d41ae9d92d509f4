// Tensor maps through the driver, found at run time so that nothing links it.
#include "kernels/cuda/hopper/tensor_map.h"

#include <array>

#include "framework/cuda_check.h"

namespace fulmen::cuda::hopper {

namespace {

constexpr std::int64_t box_tokens = 64, box_columns = 64, element_bytes = 2;

decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  FULMEN_CUDA_CHECK(
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
  FULMEN_CHECK(result == cudaDriverEntryPointSuccess && found != nullptr, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

}  // namespace

bool can_be_mapped(const Tensor& x) {
  if (x.dtype() != DType::bf16 || x.rank() != 4 || x.stride(3) != 1) return false;
  if (reinterpret_cast<std::uintptr_t>(x.data()) % 16 != 0) return false;
  for (int dimension = 0; dimension < 3; ++dimension)
    if (x.size(dimension) > 1 && (x.stride(dimension) <= 0 || x.stride(dimension) * element_bytes % 16 != 0))
      return false;
  return true;
}

CUtensorMap map_heads(const Tensor& x) {
  static const auto encode = find_encoder();
  FULMEN_CHECK(can_be_mapped(x), "{} cannot be reached by the copy engine", x.describe());
  const std::array<cuuint64_t, 4> sizes = {static_cast<cuuint64_t>(x.size(3)), static_cast<cuuint64_t>(x.size(2)),
                                           static_cast<cuuint64_t>(x.size(1)), static_cast<cuuint64_t>(x.size(0))};
  std::array<cuuint64_t, 3> strides{};
  for (int i = 0; i < 3; ++i) {
    const int dimension = 2 - i;
    // Where there is one element the stride means nothing, but must still be valid.
    strides[static_cast<std::size_t>(i)] =
        static_cast<cuuint64_t>(x.size(dimension) > 1 ? x.stride(dimension) * element_bytes : 16);
  }
  const std::array<cuuint32_t, 4> box = {box_columns, 1, box_tokens, 1}, steps = {1, 1, 1, 1};
  CUtensorMap map{};
  const CUresult status = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, x.data(), sizes.data(), strides.data(),
                                 box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  FULMEN_CHECK(status == CUDA_SUCCESS, "no tensor map of {}: driver error {}", x.describe(), static_cast<int>(status));
  return map;
}

}  // namespace fulmen::cuda::hopper
