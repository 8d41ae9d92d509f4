// Runs one pipeline rank's list of instructions.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/stage.h"
#include "parallel/pipeline_schedule.h"
#include "train/micro_batch_buffers.h"

namespace fulmen {

// What a list's instructions mean beyond the stage itself.
struct StepHandlers {
  std::function<void()> reduce_shared;
  std::function<void()> reduce_gradients;
  std::function<void()> optimizer_step;
};

class PipelineExecutor {
 public:
  // `pipeline` is the communicator along the pipeline axis, in stage order. Prepares the stage for `stashes`
  // micro-batches in flight.
  PipelineExecutor(Stage& stage, Communicator& pipeline, const BatchShape& shape, std::int64_t hidden, DType activation,
                   int stashes, const Execution& execution);

  // batches[m] is micro-batch m. loss_scale (fp64 [1], device memory) multiplies the gradient of each loss. Without
  // `gradient` the list may hold no backward instruction; a micro-batch's stash is then free after its forward.
  void run(const InstructionList& list, std::span<const Batch> batches, const Tensor& loss_scale, bool gradient,
           const StepHandlers& handlers);

  // Called after each forward without gradient, with the micro-batch's number and the slot that holds its stash.
  std::function<void(int micro_batch, int slot)> on_forward;

 private:
  // Activation-sized buffers, lent out by micro-batch; as many as were ever lent at once.
  class Pool {
   public:
    Tensor acquire(int micro_batch, const std::function<OwnedTensor()>& make);
    Tensor get(int micro_batch) const;
    void release(int micro_batch);

   private:
    struct Entry {
      OwnedTensor tensor;
      int micro_batch = -1;
    };
    std::vector<Entry> entries_;
  };

  struct Slot {
    std::unique_ptr<MicroBatchBuffers> buffers;
    int micro_batch = -1;
  };

  int slot_of(int micro_batch) const;
  int acquire_slot(int micro_batch);
  Tensor transfer_buffer(const Instruction& instruction);
  void forward(const Instruction& instruction, std::span<const Batch> batches, const Tensor& loss_scale, bool gradient);
  void backward_input(const Instruction& instruction, bool with_weights);
  void finish_micro_batch(int micro_batch);
  void transfer(std::span<const Instruction> group);

  Stage& stage_;
  Communicator& pipeline_;
  Execution execution_;
  std::vector<Slot> slots_;
  Pool inputs_, outputs_, d_outputs_, d_inputs_;
  std::function<OwnedTensor()> make_buffer_;
};

// The list with only what evaluation needs: forwards and their transfers.
InstructionList forward_only(const InstructionList& list);

}  // namespace fulmen
