// The arrays of one micro-batch, in host memory.
#pragma once

#include <cstdint>
#include <vector>

#include "framework/stable_order.h"

namespace fulmen {

// `batch` rows of `length` positions: a rank's local slice of each sample. All arrays are row-major [batch, length] but
// `segments`.
struct Batch {
  std::int64_t batch = 0;
  std::int64_t length = 0;
  // Where the slice lies in its sample: tokens [slice_begin, slice_begin + length) of sample_length.
  std::int64_t sample_length = 0;
  std::int64_t slice_begin = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;    // the next token of the stream
  std::vector<float> weights;           // 1, or 0 for a target that does not count
  std::vector<std::int64_t> positions;  // in the whole sample, from 0
  // Offsets into batch * length at which a row, or a document in it, starts, and the end.
  std::vector<std::int64_t> segments;
  // Per row: tokens of the slice's first document that lie in front of the slice, and of its last document that lie
  // behind it. Zero for a whole sample.
  std::vector<std::int64_t> tokens_before, tokens_after;
  // The places of `tokens` sorted by token: sums over equal tokens, such as the embedding's gradient, go along it.
  StableOrder order;
  double target_count() const;  // sum of the weights

  // Bytes of the arrays above that have an element for each token.
  static constexpr std::size_t bytes_per_token = 3 * sizeof(std::int32_t) + sizeof(float) + sizeof(std::int64_t);
};

}  // namespace fulmen
