// The two 16-bit floating-point formats, bit by bit: bf16 (8 bits of exponent, 7 of mantissa) and IEEE 754 fp16 (5 and
// 10).
#pragma once

#include <bit>
#include <cstdint>

namespace fulmen {

inline float bf16_to_float(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

inline float fp16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000U) << 16, magnitude = bits & 0x7fffU;
  if (magnitude >= 0x7c00U)
    return std::bit_cast<float>(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);  // infinity, NaN
  // The power of two makes up for the difference of the exponents' biases; subnormal numbers come out right as well.
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude << 13) * 0x1p112F));
}

// Rounds a number given by its bits (`mantissa` and `exponent` count them) to 16 bits. It rounds to the nearest, ties
// to even, beyond the largest to infinity. NaN stays NaN.
template <int to_mantissa, int mantissa, int exponent, class Bits>
std::uint16_t round_to_16_bits(Bits bits) {
  constexpr int to_exponent = 15 - to_mantissa;
  constexpr auto infinity = static_cast<std::uint16_t>(((1U << to_exponent) - 1) << to_mantissa);
  const auto sign = static_cast<std::uint16_t>(bits >> (mantissa + exponent) << 15);
  const Bits fraction = bits & ((Bits{1} << mantissa) - 1);
  const int stored = static_cast<int>(bits >> mantissa & ((Bits{1} << exponent) - 1));
  if (stored == (1 << exponent) - 1) {
    return static_cast<std::uint16_t>(sign | infinity | (fraction != 0 ? 1U << (to_mantissa - 1) : 0U));
  }
  const Bits significand = stored == 0 ? fraction : fraction | Bits{1} << mantissa;
  int target = (stored == 0 ? 1 : stored) - ((1 << (exponent - 1)) - 1) + ((1 << (to_exponent - 1)) - 1);
  int dropped = mantissa - to_mantissa;
  if (target < 1) dropped += 1 - target, target = 1;  // subnormal there
  if (dropped > mantissa + 1) return sign;
  const Bits rest = significand & ((Bits{1} << dropped) - 1), half = Bits{1} << (dropped - 1);
  Bits rounded = significand >> dropped;
  if (rest > half || (rest == half && (rounded & 1) != 0)) ++rounded;
  const Bits result = (static_cast<Bits>(target - 1) << to_mantissa) + rounded;  // a carry moves into the exponent
  return static_cast<std::uint16_t>(sign | (result < infinity ? result : infinity));
}

inline std::uint16_t to_bf16(float x) { return round_to_16_bits<7, 23, 8>(std::bit_cast<std::uint32_t>(x)); }
inline std::uint16_t to_bf16(double x) { return round_to_16_bits<7, 52, 11>(std::bit_cast<std::uint64_t>(x)); }
inline std::uint16_t to_fp16(float x) { return round_to_16_bits<10, 23, 8>(std::bit_cast<std::uint32_t>(x)); }
inline std::uint16_t to_fp16(double x) { return round_to_16_bits<10, 52, 11>(std::bit_cast<std::uint64_t>(x)); }

}  // namespace fulmen
