// Philox4x32-10 and what is drawn from it.
#include "framework/random.h"

#include <cmath>
#include <numbers>

#include <xxhash.h>

namespace fulmen {

namespace {

constexpr std::uint32_t multiplier_0 = 0xD2511F53, multiplier_1 = 0xCD9E8D57;  // Salmon et al., section 4.3
constexpr std::uint32_t weyl_0 = 0x9E3779B9, weyl_1 = 0xBB67AE85;

// The last word of the counter: bits and normals of one stream come from different counters.
constexpr std::uint32_t domain_bits = 0, domain_normal = 1;

struct Pair {
  std::uint64_t first, second;
};

Pair draw(std::uint64_t key, std::uint64_t counter, std::uint32_t domain) {
  const auto x =
      philox4x32({static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, domain}, key);
  return {x[0] | static_cast<std::uint64_t>(x[1]) << 32, x[2] | static_cast<std::uint64_t>(x[3]) << 32};
}

constexpr double ulp = 0x1p-53;

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::uint64_t key) {
  auto key_0 = static_cast<std::uint32_t>(key);
  auto key_1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product_0 = std::uint64_t{multiplier_0} * counter[0];
    const std::uint64_t product_1 = std::uint64_t{multiplier_1} * counter[2];
    counter = {static_cast<std::uint32_t>(product_1 >> 32) ^ counter[1] ^ key_0, static_cast<std::uint32_t>(product_1),
               static_cast<std::uint32_t>(product_0 >> 32) ^ counter[3] ^ key_1, static_cast<std::uint32_t>(product_0)};
    key_0 += weyl_0;
    key_1 += weyl_1;
  }
  return counter;
}

RandomStream::RandomStream(std::uint64_t seed, std::string_view name)
    : key_(XXH3_64bits_withSeed(name.data(), name.size(), seed)) {}

std::uint64_t RandomStream::bits(std::uint64_t index) const {
  const Pair pair = draw(key_, index / 2, domain_bits);
  return index % 2 == 0 ? pair.first : pair.second;
}

double RandomStream::uniform(std::uint64_t index) const { return static_cast<double>(bits(index) >> 11) * ulp; }

double RandomStream::normal(std::uint64_t index) const {
  const Pair pair = draw(key_, index / 2, domain_normal);
  const double radius_uniform = static_cast<double>((pair.first >> 11) + 1) * ulp;  // (0, 1]: its logarithm exists
  const double angle = 2.0 * std::numbers::pi * (static_cast<double>(pair.second >> 11) * ulp);
  const double radius = std::sqrt(-2.0 * std::log(radius_uniform));
  return radius * (index % 2 == 0 ? std::cos(angle) : std::sin(angle));
}

}  // namespace fulmen
