// The decay of each head: lambda = exp(-slope).
#pragma once

#include <cstdint>
#include <vector>

namespace fulmen {

// Slopes of all heads of a layer, as in the released TransNormerLLM models: the ALiBi ladder 2^(-8 (h+1) / H) times 1 -
// l / (L - 1) + 1e-5. For H not a power of two the ladder goes on with every second entry of the next ladder. With one
// layer the factor is 1 + 1e-5.
std::vector<double> decay_slopes(std::int64_t heads, std::int64_t layer, std::int64_t layers);

}  // namespace fulmen
