// The decay of each head.
#include "model/mixers/decay_slopes.h"

#include <bit>
#include <cmath>

namespace fulmen {

namespace {

std::vector<double> ladder(std::int64_t heads) {
  std::vector<double> slopes;
  for (std::int64_t h = 0; h < heads; ++h)
    slopes.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
  return slopes;
}

}  // namespace

std::vector<double> decay_slopes(std::int64_t heads, std::int64_t layer, std::int64_t layers) {
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(heads)));
  std::vector<double> slopes = ladder(power);
  const std::vector<double> finer = ladder(2 * power);
  for (std::int64_t i = 0; power + i < heads; ++i) slopes.push_back(finer[static_cast<std::size_t>(2 * i)]);
  const double depth = layers > 1 ? static_cast<double>(layer) / static_cast<double>(layers - 1) : 0.0;
  for (double& slope : slopes) slope *= 1.0 - depth + 1e-5;
  return slopes;
}

}  // namespace fulmen
