// Tensors over std::vector, and random values that ranks can recompute for one another.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "framework/tensor.h"

namespace fulmen {

template <class T>
Tensor tensor_of(std::vector<T>& values) {
  return Tensor(values.data(), dtype_of<T>, {static_cast<std::int64_t>(values.size())});
}

// Whole numbers of either sign where the type has them, small enough that sums over 8 ranks are exact in every type.
template <class T>
std::vector<T> random_values(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::uniform_int_distribution<int> distribution(std::is_signed_v<T> ? -30 : 0, 30);
  std::vector<T> values(static_cast<std::size_t>(count));
  for (T& value : values) value = static_cast<T>(distribution(generator));
  return values;
}

// Values that no result of the tests has: NaN, or the largest number.
template <class T>
std::vector<T> poisoned(std::int64_t count) {
  const T poison = std::is_floating_point_v<T> ? std::numeric_limits<T>::quiet_NaN() : std::numeric_limits<T>::max();
  return std::vector<T>(static_cast<std::size_t>(count), poison);
}

}  // namespace fulmen
