// Element types of tensors.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "framework/bfloat16.h"
#include "framework/error.h"

namespace fulmen {

enum class DType : std::uint8_t { fp64, fp32, bf16, fp16, int64, int32, uint64, uint32, uint16, uint8 };

std::size_t size_of(DType dtype);          // bytes of one element
std::string_view name_of(DType dtype);     // "fp32", "bf16", ...
DType parse_dtype(std::string_view name);  // throws InternalError for an unknown name
bool is_floating(DType dtype);

template <class T>
inline constexpr DType dtype_of = [] {
  static_assert(sizeof(T) == 0, "no dtype for this type");
  return DType::fp64;
}();
template <>
inline constexpr DType dtype_of<double> = DType::fp64;
template <>
inline constexpr DType dtype_of<float> = DType::fp32;
template <>
inline constexpr DType dtype_of<BFloat16> = DType::bf16;
template <>
inline constexpr DType dtype_of<std::int64_t> = DType::int64;
template <>
inline constexpr DType dtype_of<std::int32_t> = DType::int32;
template <>
inline constexpr DType dtype_of<std::uint64_t> = DType::uint64;
template <>
inline constexpr DType dtype_of<std::uint32_t> = DType::uint32;
template <>
inline constexpr DType dtype_of<std::uint16_t> = DType::uint16;
template <>
inline constexpr DType dtype_of<std::uint8_t> = DType::uint8;

// The type in which sums over elements of `dtype` are kept: fp64 for fp64, fp32 for narrower dtypes.
inline DType accumulation_dtype(DType dtype) { return dtype == DType::fp64 ? DType::fp64 : DType::fp32; }

// Calls f(T{}) with T = float or double. The CPU computes in no other types.
template <class F>
decltype(auto) dispatch_fp32_fp64(DType dtype, F&& f) {
  switch (dtype) {
    case DType::fp32: return f(float{});
    case DType::fp64: return f(double{});
    default: break;
  }
  throw InternalError(fmt::format("no CPU arithmetic for {}", name_of(dtype)));
}

}  // namespace fulmen
