// Learning-rate schedules: pure functions of the step.
#pragma once

#include <cstdint>

#include "train/train_config.h"

namespace fulmen {

// The rate of update t (from 0) of `steps`. Warm-up of W steps: peak (t + 1) / W. After it, with progress
// p = (t + 1 - W) / (steps - W), so that the last step has the minimum:
//   constant: peak;   linear: peak + (minimum - peak) p;   cosine: minimum + (peak - minimum) (1 + cos(pi p)) / 2
//   wsd: peak until the last D steps, then linear to the minimum over them (warm-up, stable, decay).
double learning_rate(const LearningRateConfig& schedule, double peak, std::int64_t t, std::int64_t steps);

}  // namespace fulmen
