// Rotary position embedding, in place on the heads of queries and keys (RoFormer, arXiv 2104.09864):
//   (a, b) -> (a cos(p f) - b sin(p f), b cos(p f) + a sin(p f)) * scale
// for each pair of columns of a head, p being the token's position and f the pair's frequency.
#pragma once

#include <cstdint>
#include <vector>

#include "framework/execution.h"
#include "kernels/backends.h"

namespace fulmen {

// The columns of a pair. r is the number of columns that are rotated.
enum class RotationPairs : std::uint8_t {
  halves,      // (x_j, x_(j + r/2))     LLaMA as transformers has it
  neighbours,  // (x_2j, x_(2j+1))       torchscale
};

struct Rotation {
  std::int64_t head_width = 0;
  RotationPairs pairs = RotationPairs::halves;
  // fp64 [r / 2], contiguous: the angle that a token adds. The first r columns of each head are rotated. Null: none.
  Tensor frequencies;
  double scale = 1.0;  // of all columns of each head
};

// x [tokens, heads * head_width], any row stride, rewritten. positions int64 [tokens], any stride, from 0 and below
// 2^32. Angles are formed in fp64 and reduced modulo 2 pi there. `inverse`: the transposed map, for gradients.
void rotate(const Execution& execution, const Rotation& rotation, const Tensor& positions, bool inverse,
            const Tensor& x);
FULMEN_BACKENDS(rotate);

// Frequencies, [rotated / 2], for Rotation::frequencies. `rotated` is even and positive, theta above 1 (UserError
// otherwise comes from the configuration; here it is a check).
// theta^(-2 j / rotated): RoPE.
std::vector<double> rotary_frequencies(double theta, std::int64_t rotated);
// theta^(-j / (rotated/2 - 1)), from 1 to 1/theta with both ends: torchscale's RetNetRelPos.
std::vector<double> rotary_frequencies_with_end(double theta, std::int64_t rotated);

// Stretches low frequencies for longer contexts; transformers' rope type `llama3`. With n = original_length f / (2 pi)
// turns of a frequency f in the original context: f / factor where n < low_frequency_factor, f where n >
// high_frequency_factor, between them (1 - s) f / factor + s f. There s = (n - low) / (high - low).
struct FrequencyScaling {
  double factor = 1.0;
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;  // above the low factor
  double original_length = 8192.0;     // tokens
};
std::vector<double> scale_frequencies(std::vector<double> frequencies, const FrequencyScaling& scaling);

}  // namespace fulmen
