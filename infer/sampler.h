// Choosing the next token from logits.
#pragma once

#include <cstdint>

#include "framework/random.h"
#include "framework/tensor.h"

namespace fulmen {

struct SamplingOptions {
  double temperature = 1.0;  // logits are divided by it; 0 takes the largest
  std::int64_t top_k = 0;    // of the likeliest tokens only these many; 0: all
  double top_p =
      1.0;  // of those the fewest whose probabilities sum to at least this (Holtzman et al. 2020, section 3.1)
  std::uint64_t seed = 0;
};

// Pure: the token depends on the logits, the options and the position alone, so a run can be repeated or taken up
// anywhere.
class Sampler {
 public:
  // Throws UserError for a temperature below 0, a top_k below 0 or a top_p outside (0, 1].
  explicit Sampler(const SamplingOptions& options);

  // `logits` is [vocabulary], fp32 or fp64, on the host. The random number comes from the stream "generate" at
  // `position`. Among equal logits the smaller id goes first. Throws DivergedError when a logit is NaN or plus
  // infinity, or when all are minus infinity (which rules a token out).
  std::int64_t sample(const Tensor& logits, std::int64_t position) const;

 private:
  SamplingOptions options_;
  RandomStream stream_;
};

}  // namespace fulmen
