// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011).
// A number is a pure function of (seed, name, index), so it does not depend on the layout of ranks.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace fulmen {

// Ten rounds of Philox4x32 on a 128-bit counter with a 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::uint64_t key);

// A stream of numbers named `name` under `seed`; element `index` of it costs the same wherever it is.
class RandomStream {
 public:
  RandomStream(std::uint64_t seed, std::string_view name);
  std::uint64_t bits(std::uint64_t index) const;  // 64 uniform bits
  double uniform(std::uint64_t index) const;      // [0, 1)
  double normal(std::uint64_t index) const;       // mean 0, variance 1 (Box-Muller)

 private:
  std::uint64_t key_;
};

}  // namespace fulmen
