// Ranges of the numbers that files from outside give: whatever is within them can be added up and multiplied by the
// size of an element without overflow.
#pragma once

#include <cstdint>

#include "framework/tensor.h"

namespace fulmen {

// The most steps, samples, tokens, documents and bytes that a manifest counts: far more than any run, and few enough to
// add.
inline constexpr std::int64_t most_counted = std::int64_t{1} << 60;
// The most elements of one tensor.
inline constexpr std::int64_t most_elements = std::int64_t{1} << 58;

// Whether a shape from outside can be counted with: no extent is negative, and their product, zeros left out, is at
// most most_elements.
inline bool is_countable(const Shape& shape) {
  std::int64_t left = most_elements;
  for (const std::int64_t extent : shape) {
    if (extent < 0 || extent > left) return false;
    if (extent > 1) left /= extent;
  }
  return true;
}

}  // namespace fulmen
