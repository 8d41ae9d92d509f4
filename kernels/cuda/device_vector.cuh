// Element types on the device: packets of elements that travel in accesses of up to 16 bytes, and their conversion to
// the type of sums. Also the host's choice of type and packet length.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "framework/error.h"
#include "framework/tensor.h"

namespace fulmen::cuda {

// The type of arithmetic on elements of T: fp32, but fp64 for fp64.
template <class T>
using Accumulated = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float to_accumulated(float x) { return x; }
__device__ __forceinline__ double to_accumulated(double x) { return x; }
__device__ __forceinline__ float to_accumulated(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even; to bf16 by way of fp32, as the host does.
template <class T, class A>
__device__ __forceinline__ T round_to(A x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(static_cast<float>(x));
  else
    return static_cast<T>(x);
}

// The elements of one 16-byte access.
template <class T>
inline constexpr int vector_length = 16 / static_cast<int>(sizeof(T));

// `length` neighbouring elements, in registers as they lie in memory.
template <class T, int length>
struct alignas(length * sizeof(T) < 16 ? length * sizeof(T) : 16) Packet {
  T values[length];

  __device__ __forceinline__ Accumulated<T> operator[](int i) const { return to_accumulated(values[i]); }
};

// Two bf16 a register: the compiler would keep each single bf16 in a register of its own.
template <int length>
requires(length % 2 == 0) struct alignas(length < 8 ? 2 * length : 16) Packet<__nv_bfloat16, length> {
  std::uint32_t pairs[length / 2];

  __device__ __forceinline__ float operator[](int i) const {
    return __uint_as_float(i % 2 == 0 ? pairs[i / 2] << 16 : pairs[i / 2] & 0xffff0000u);
  }
};

// One access of 16, 8 or 4 bytes, written out: the compiler splits some of those that it could join.
__device__ __forceinline__ void load_words(const void* from, std::uint32_t (&words)[4]) {
  asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "l"(__cvta_generic_to_global(from))
               : "memory");
}
__device__ __forceinline__ void load_words(const void* from, std::uint32_t (&words)[2]) {
  asm volatile("ld.global.v2.b32 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "l"(__cvta_generic_to_global(from))
               : "memory");
}
__device__ __forceinline__ void load_words(const void* from, std::uint32_t (&words)[1]) {
  words[0] = *static_cast<const std::uint32_t*>(from);
}
__device__ __forceinline__ void store_words(void* to, const std::uint32_t (&words)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]),
               "r"(words[1]), "r"(words[2]), "r"(words[3])
               : "memory");
}
__device__ __forceinline__ void store_words(void* to, const std::uint32_t (&words)[2]) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(words[0]), "r"(words[1])
               : "memory");
}
__device__ __forceinline__ void store_words(void* to, const std::uint32_t (&words)[1]) {
  *static_cast<std::uint32_t*>(to) = words[0];
}

// A packet as accesses of words; more than 16 bytes take several.
template <class T, int length>
struct PacketWords {
  static constexpr int words = static_cast<int>(alignof(Packet<T, length>)) / 4;
  static constexpr int count = static_cast<int>(sizeof(Packet<T, length>)) / (4 * words);
  std::uint32_t parts[count][words];
};

template <int length, class T>
__device__ __forceinline__ Packet<T, length> load_packet(const T* from) {
  if constexpr (length == 1) {
    return {*from};
  } else {
    using Words = PacketWords<T, length>;
    Words words;
#pragma unroll
    for (int i = 0; i < Words::count; ++i) load_words(from + i * length / Words::count, words.parts[i]);
    return __builtin_bit_cast(Packet<T, length>, words);
  }
}

template <class T, int length>
__device__ __forceinline__ void store_packet(T* to, const Packet<T, length>& packet) {
  if constexpr (length == 1) {
    *to = packet.values[0];
  } else {
    using Words = PacketWords<T, length>;
    const Words words = __builtin_bit_cast(Words, packet);
#pragma unroll
    for (int i = 0; i < Words::count; ++i) store_words(to + i * length / Words::count, words.parts[i]);
  }
}

// A packet of the values value(0), value(1), ..., each rounded to T.
template <class T, int length, class Value>
__device__ __forceinline__ Packet<T, length> make_packet(Value&& value) {
  Packet<T, length> packet;
  if constexpr (std::is_same_v<T, __nv_bfloat16> && length % 2 == 0) {
#pragma unroll
    for (int i = 0; i < length; i += 2) {  // two are rounded by one instruction
      const auto even = static_cast<float>(value(i)), odd = static_cast<float>(value(i + 1));
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packet.pairs[i / 2]) : "f"(odd), "f"(even));
    }
  } else {
#pragma unroll
    for (int i = 0; i < length; ++i) packet.values[i] = round_to<T>(value(i));
  }
  return packet;
}

// The first element, as the device's type.
template <class T>
T* pointer_to(const Tensor& x) {
  return static_cast<T*>(x.data());
}

// Calls f(T{}) with the device's type of a floating-point dtype.
template <class F>
void dispatch_floating(DType dtype, F&& f) {
  switch (dtype) {
    case DType::fp32: return f(float{});
    case DType::fp64: return f(double{});
    case DType::bf16: return f(__nv_bfloat16{});
    default: break;
  }
  throw InternalError(fmt::format("no GPU arithmetic for {}", name_of(dtype)));
}

// Whether packets of `length` elements at multiples of `length` columns are aligned in every row. Null tensors are.
inline bool packets_aligned(int length, std::initializer_list<Tensor> tensors) {
  for (const Tensor& x : tensors) {
    if (x.is_null()) continue;
    const std::size_t bytes = length * size_of(x.dtype()), alignment = bytes < 16 ? bytes : 16;
    if (reinterpret_cast<std::uintptr_t>(x.data()) % alignment != 0) return false;
    for (int d = 0; d + 1 < x.rank(); ++d)
      if (x.size(d) > 1 && x.stride(d) % length != 0) return false;
  }
  return true;
}

// Calls f(std::integral_constant) with `length`, or with 1 where packets are not possible.
template <int length, class F>
void dispatch_length(bool possible, F&& f) {
  if constexpr (length > 1) {
    if (possible) return f(std::integral_constant<int, length>{});
  }
  f(std::integral_constant<int, 1>{});
}

// Elements a packet for the passes over rows: 16 bytes; fp64 moves in single elements, which coalesce well enough.
template <class T>
inline constexpr int row_packet = std::is_same_v<T, double> ? 1 : vector_length<T>;

}  // namespace fulmen::cuda
