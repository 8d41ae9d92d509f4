// A micro-batch's place in device memory, at fixed addresses.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "data/batch.h"
#include "framework/gpu.h"
#include "model/micro_batch.h"

namespace fulmen {

class MicroBatchBuffers {
 public:
  // sample_scale: 1 / samples of the global batch.
  MicroBatchBuffers(const BatchShape& shape, double sample_scale, const Execution& execution);
  // Copies a batch of this shape in; loss_scale (fp64 [1]) is passed on. Returns the view that layers read. On a GPU
  // the host waits for nothing but the copy of the batch before, in case that is still to come. Where memory is planned
  // alone, only the batch's shape is read.
  const MicroBatch& fill(const Batch& batch, const Tensor& loss_scale, const Execution& execution);
  const MicroBatch& micro_batch() const { return view_; }

 private:
  struct ReleasePinned {
    void operator()(std::byte* data) const { gpu::release_pinned(data); }
  };
  std::byte* staging() { return pinned_ ? pinned_.get() : pageable_.data(); }

  OwnedTensor memory_;                                // uint8: the arrays of a batch end to end, segments last
  std::unique_ptr<std::byte, ReleasePinned> pinned_;  // the same on the host, page-locked for a GPU
  std::vector<std::byte> pageable_;                   // or not, for the CPU
  gpu::Event copied_;                                 // the staging memory may be written again
  MicroBatch view_;
};

}  // namespace fulmen
