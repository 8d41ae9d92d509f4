// A balanced Feistel network with Philox as its round function. It is walked along its cycle until it lands below the
// number of samples. Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, method 2.
#include "data/sampling_order.h"

#include <utility>

#include "framework/error.h"
#include "framework/random.h"

namespace fulmen {

namespace {

constexpr std::uint32_t rounds = 6;

std::uint64_t permute(std::uint64_t x, int half_bits, std::uint64_t seed, std::uint64_t epoch) {
  const std::uint32_t mask = static_cast<std::uint32_t>((std::uint64_t{1} << half_bits) - 1);
  auto left = static_cast<std::uint32_t>(x >> half_bits);
  auto right = static_cast<std::uint32_t>(x) & mask;
  for (std::uint32_t round = 0; round < rounds; ++round) {
    const auto mixed =
        philox4x32({right, round, static_cast<std::uint32_t>(epoch), static_cast<std::uint32_t>(epoch >> 32)}, seed);
    left = std::exchange(right, (left ^ mixed[0]) & mask);
  }
  return (static_cast<std::uint64_t>(left) << half_bits) | right;
}

}  // namespace

SamplingOrder::SamplingOrder(std::int64_t samples, std::uint64_t seed, bool shuffle)
    : samples_(samples), seed_(seed), shuffle_(shuffle), half_bits_(0) {
  FULMEN_CHECK(samples >= 1 && samples <= (std::int64_t{1} << 62), "{} samples", samples);
  while ((std::int64_t{1} << (2 * half_bits_)) < samples) ++half_bits_;
}

std::int64_t SamplingOrder::at(std::int64_t index) const {
  FULMEN_CHECK(index >= 0, "place {} in the sampling order", index);
  const std::int64_t place = index % samples_;
  if (!shuffle_ || samples_ == 1) return place;
  const auto epoch = static_cast<std::uint64_t>(index / samples_);
  auto x = static_cast<std::uint64_t>(place);
  do {
    x = permute(x, half_bits_, seed_, epoch);
  } while (x >= static_cast<std::uint64_t>(samples_));
  return static_cast<std::int64_t>(x);
}

}  // namespace fulmen
