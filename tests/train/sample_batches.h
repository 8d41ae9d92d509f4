// A small model, and slices of samples of arbitrary tokens for it.
#pragma once

#include "data/batch_loader.h"
#include "model/families/transnormer/config.h"
#include "parallel/placement.h"

namespace fulmen {

inline constexpr std::int64_t sample_rows = 2;

inline TransnormerConfig sample_model(std::int64_t heads = 4) {
  TransnormerConfig config;
  config.layers = 3;
  config.heads = heads;
  config.hidden = 8 * heads;
  config.glu = 40;
  config.vocabulary = 50;
  config.lrpe_layers = {1};
  return config;
}

inline Batch sample_slice(std::int64_t sample_length, const IndexRange& slice) {
  Batch batch = make_batch(sample_rows, sample_length, slice.begin, slice.end);
  for (std::int64_t row = 0; row < sample_rows; ++row) {
    for (std::int64_t t = 0; t < slice.size(); ++t) {
      const auto at = static_cast<std::size_t>(row * slice.size() + t);
      batch.tokens[at] = static_cast<std::int32_t>((7 * (slice.begin + t) + row) % 50);
      batch.targets[at] = static_cast<std::int32_t>((7 * (slice.begin + t + 1) + row) % 50);
      batch.weights[at] = 1.0F;
      batch.positions[at] = slice.begin + t;
    }
    batch.segments.push_back((row + 1) * slice.size());
  }
  batch.order = stable_order(batch.tokens);
  return batch;
}

}  // namespace fulmen
