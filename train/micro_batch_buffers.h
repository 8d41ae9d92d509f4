// A micro-batch's place in device memory, at fixed addresses.
#pragma once

#include "data/batch.h"
#include "model/sublayer.h"

namespace fulmen {

class MicroBatchBuffers {
 public:
  MicroBatchBuffers(const BatchShape& shape, const Execution& execution);
  // Copies a batch of this shape in; loss_scale (fp64 [1]) is passed on. Returns the view that layers read.
  const MicroBatch& fill(const Batch& batch, const Tensor& loss_scale, const Execution& execution);
  const MicroBatch& micro_batch() const { return view_; }

 private:
  OwnedTensor tokens_, targets_, weights_, positions_, segments_;
  MicroBatch view_;
};

}  // namespace fulmen
