// Argument checks and dispatch of the rotary position embedding, and its frequencies.
#include "kernels/rotation.h"

#include <cmath>
#include <numbers>

#include "kernels/dispatch.h"

namespace fulmen {

void rotate(const Execution& execution, const Rotation& rotation, const Tensor& positions, bool inverse,
            const Tensor& x) {
  FULMEN_CHECK(x.rank() == 2 && rotation.head_width > 0 && x.size(1) % rotation.head_width == 0,
               "x is {}, expected [tokens, heads * {}]", x.describe(), rotation.head_width);
  check_matrix(x, x.dtype(), x.size(0), x.size(1), "x");
  if (rotation.frequencies) {
    check_vector(rotation.frequencies, DType::fp64, rotation.frequencies.elements(), "frequencies");
    FULMEN_CHECK(2 * rotation.frequencies.elements() <= rotation.head_width,
                 "{} frequencies turn more columns than the {} of a head", rotation.frequencies.elements(),
                 rotation.head_width);
    check_dtype(positions, DType::int64, "positions");
    check_shape(positions, {x.size(0)}, "positions");
  }
  if (x.elements() == 0 || (rotation.frequencies.is_null() && rotation.scale == 1.0)) return;
  run_on_device(execution, {"rotation", 0.0, traffic({x, x}), Scratch::on_cpu}, backends::rotate, rotation, positions,
                inverse, x);
}

namespace {

void check_frequencies(double theta, std::int64_t rotated) {
  FULMEN_CHECK(theta > 1.0 && rotated > 0 && rotated % 2 == 0, "theta is {}, {} columns are rotated", theta, rotated);
}

}  // namespace

std::vector<double> rotary_frequencies(double theta, std::int64_t rotated) {
  check_frequencies(theta, rotated);
  std::vector<double> frequencies;
  for (std::int64_t j = 0; j < rotated; j += 2)
    frequencies.push_back(std::pow(theta, -static_cast<double>(j) / static_cast<double>(rotated)));
  return frequencies;
}

std::vector<double> rotary_frequencies_with_end(double theta, std::int64_t rotated) {
  check_frequencies(theta, rotated);
  const std::int64_t last = rotated / 2 - 1;
  std::vector<double> frequencies(1, 1.0);
  for (std::int64_t j = 1; j <= last; ++j)
    frequencies.push_back(std::pow(theta, -static_cast<double>(j) / static_cast<double>(last)));
  return frequencies;
}

std::vector<double> scale_frequencies(std::vector<double> frequencies, const FrequencyScaling& scaling) {
  const double low = scaling.low_frequency_factor, high = scaling.high_frequency_factor;
  FULMEN_CHECK(scaling.factor > 0 && low < high && scaling.original_length > 0,
               "factor {}, low {} and high {} frequency factors, original length {}", scaling.factor, low, high,
               scaling.original_length);
  for (double& frequency : frequencies) {
    const double turns = scaling.original_length * frequency / (2.0 * std::numbers::pi);
    const double kept = turns < low ? 0.0 : turns > high ? 1.0 : (turns - low) / (high - low);
    frequency = (1.0 - kept) * frequency / scaling.factor + kept * frequency;
  }
  return frequencies;
}

}  // namespace fulmen
