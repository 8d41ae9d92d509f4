// Biases and rates of token gates.
#pragma once

#include "model/parameter.h"

namespace fulmen {

// As declare_vector, in fp32 at least: a decay is sensitive to its logarithm's last digits.
inline ParameterDeclaration declare_gate_vector(const std::string& name, Shape shape, Initializer initializer,
                                                std::int64_t units) {
  ParameterDeclaration vector = declare_vector(name, std::move(shape), std::move(initializer), units);
  vector.group.narrowest = DType::fp32;
  vector.group.whole = true;
  return vector;
}

}  // namespace fulmen
