// A micro-batch as layers read it.
#pragma once

#include <cstdint>

#include "kernels/embedding.h"

namespace fulmen {

struct BatchShape {
  std::int64_t batch = 0;
  std::int64_t length = 0;
  std::int64_t tokens() const { return batch * length; }
};

// A micro-batch in device memory: this rank's local slice of each sample.
struct MicroBatch {
  BatchShape shape;
  Tensor tokens;                       // int32 [tokens]
  Tensor targets;                      // int32 [tokens]
  Tensor weights;                      // fp32 [tokens]: 0 masks a target
  Tensor positions;                    // int64 [batch, length], in the whole sample
  Tensor segments;                     // int64 [segments + 1]: where documents (and rows) start, and the end
  Tensor tokens_before, tokens_after;  // int64 [batch]: how far a row's first and last document go on outside the slice
  bool one_document = false;           // every sample is known to be a single document
  TokenOrder order;                    // of `tokens`
  Tensor loss_scale;                   // fp64 [1]: 1 / targets that count in the global batch
  double sample_scale = 0.0;           // 1 / samples of the global batch: for losses that are means over samples
};

}  // namespace fulmen
