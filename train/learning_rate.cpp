// Learning-rate schedules.
#include "train/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "framework/error.h"

namespace fulmen {

std::int64_t TrainConfig::total_steps(std::int64_t sequence_length) const {
  if (steps > 0) return steps;
  const std::int64_t per_step = global_batch * sequence_length;
  return tokens / per_step + (tokens % per_step != 0 ? 1 : 0);
}

double learning_rate(const LearningRateConfig& schedule, double peak, std::int64_t t, std::int64_t steps) {
  const std::int64_t warmup = schedule.warmup_steps;
  if (t < warmup) return peak * static_cast<double>(t + 1) / static_cast<double>(warmup);
  if (schedule.kind == "constant") return peak;
  const auto fraction = [&](std::int64_t begin) {
    const double length = static_cast<double>(std::max<std::int64_t>(1, steps - begin));
    return std::clamp(static_cast<double>(t + 1 - begin) / length, 0.0, 1.0);
  };
  if (schedule.kind == "linear") return peak + (schedule.minimum - peak) * fraction(warmup);
  if (schedule.kind == "cosine")
    return schedule.minimum + 0.5 * (peak - schedule.minimum) * (1.0 + std::cos(std::numbers::pi * fraction(warmup)));
  FULMEN_CHECK(schedule.kind == "wsd", "unknown schedule {}", schedule.kind);
  const std::int64_t decay = schedule.decay_steps.value_or(std::max<std::int64_t>(1, steps / 10));
  const std::int64_t decay_begin = std::max(warmup, steps - decay);
  return t < decay_begin ? peak : peak + (schedule.minimum - peak) * fraction(decay_begin);
}

}  // namespace fulmen
