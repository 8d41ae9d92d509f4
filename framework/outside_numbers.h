// Ranges of the numbers that files from outside give. Numbers within them can be summed, and multiplied by the size of
// an element, without overflow.
#pragma once

#include <cstdint>

#include "framework/tensor.h"

namespace fulmen {

// The most steps, samples, tokens, documents and bytes that a manifest counts: far more than any run, and few enough to
// add.
inline constexpr std::int64_t most_counted = std::int64_t{1} << 60;
// The most elements of one tensor.
inline constexpr std::int64_t most_elements = std::int64_t{1} << 58;

// Whether no factor is negative, and their product, zeros left out, at most `most`.
inline bool is_product_within(std::int64_t most, const Shape& factors) {
  for (const std::int64_t factor : factors) {
    if (factor < 0 || factor > most) return false;
    if (factor > 1) most /= factor;
  }
  return true;
}

// Whether a shape from outside can be counted with.
inline bool is_countable(const Shape& shape) { return is_product_within(most_elements, shape); }

}  // namespace fulmen
