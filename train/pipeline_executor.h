// Runs one pipeline rank's list of instructions.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "model/stage.h"
#include "parallel/pipeline_schedule.h"
#include "train/micro_batch_buffers.h"
#include "train/stream_timer.h"

namespace fulmen {

// The meaning of a list's instructions beyond the stages themselves.
struct StepHandlers {
  std::function<void()> reduce_shared;
  std::function<void()> reduce_gradients;  // of all chunks: called at the last chunk's instruction
  std::function<void()> optimizer_step;
};

struct PipelineOptions {
  BatchShape shape;  // of a micro-batch on this rank
  DType activation = DType::fp32;
  double sample_scale = 0.0;  // 1 / samples of the global batch
  std::vector<int> slots;     // micro-batches in flight, by chunk
  bool overlap = false;       // transfers overlap with passes
};

class PipelineExecutor {
 public:
  // stages[c] is model chunk c of this rank; `pipeline` the communicator along the pipeline axis, in stage order.
  // Prepares the stages.
  PipelineExecutor(std::vector<Stage*> stages, Communicator& pipeline, const PipelineOptions& options,
                   const Execution& execution);

  // batches[m] is micro-batch m. loss_scale (fp64 [1], device memory) multiplies the gradient of each loss. Without
  // `gradient` the list may hold no backward instruction; a micro-batch's stash is then free after its forward.
  void run(const InstructionList& list, std::span<const Batch> batches, const Tensor& loss_scale, bool gradient,
           const StepHandlers& handlers);

  // Called after each forward of the last stage without gradient, with the micro-batch's number and the slot of its
  // stash.
  std::function<void(int micro_batch, int slot)> on_forward;

  // Seconds of the last run that passes waited for transfers: the host's, or on a GPU the stream's.
  double waiting_seconds() { return waiting_.seconds(); }

  // From now on passes are timed, which costs two events each on a GPU.
  void time_passes();
  // Mean seconds of the last run's passes on a model chunk.
  PassCosts pass_seconds(int chunk);

 private:
  // Activation-sized buffers, lent out by micro-batch and chunk; as many as were ever lent at once.
  class Pool {
   public:
    Tensor acquire(const Instruction& user, const std::function<OwnedTensor()>& make);
    Tensor get(int micro_batch, int chunk) const;
    void release(int micro_batch, int chunk);

   private:
    struct Entry {
      OwnedTensor tensor;
      int micro_batch = -1, chunk = 0;
    };
    std::vector<Entry> entries_;
  };

  struct Slot {
    std::unique_ptr<MicroBatchBuffers> buffers;
    int micro_batch = -1;
  };
  enum class Timed : std::uint8_t {
    forward,
    backward_input,
    backward_weight,
    joined
  };  // joined: both backward passes as one
  static constexpr std::size_t timed_kinds = 4;
  // Passes of one kind on one chunk.
  struct PassTimer {
    StreamTimer timer;
    int passes = 0;
  };
  struct Chunk {
    Stage* stage;
    std::vector<Slot> slots;
    std::vector<PassTimer> timers;  // by kind; none: they are not timed
  };
  // A group of transfers that was started.
  struct Started {
    std::vector<Instruction> group;
    Pending pending;
  };

  Chunk& chunk_of(const Instruction& instruction) { return chunks_[static_cast<std::size_t>(instruction.chunk)]; }
  Slot& slot_of(const Instruction& instruction);
  int acquire_slot(const Instruction& instruction);
  Tensor transfer_buffer(const Instruction& instruction);
  void forward(const Instruction& instruction, std::span<const Batch> batches, const Tensor& loss_scale, bool gradient);
  void backward_input(const Instruction& instruction, bool with_weights);
  void finish_micro_batch(const Instruction& instruction);
  // Runs a pass of instruction's chunk, which waits for no transfer.
  void pass(Timed kind, const Instruction& instruction, const std::function<void()>& work);
  // Runs the group, or starts it. A group of receives that comes next is started with it. Its place in the order of
  // transfers is the same, and its tensors may travel during the passes between.
  void transfer(const InstructionList& list, std::size_t begin);
  void start(std::span<const Instruction> group);
  void complete(Started& started);
  void await(Operation operation, const Instruction& user);
  void await_all();

  std::vector<Chunk> chunks_;
  Communicator& pipeline_;
  Execution execution_;
  bool overlap_;
  Pool inputs_, outputs_, d_outputs_, d_inputs_;
  std::function<OwnedTensor()> make_buffer_;
  std::deque<Started> in_flight_;
  std::size_t started_end_ = 0;  // transfers of the list before it are started
  StreamTimer waiting_;
};

// Passes of one kind.
struct TimedPasses {
  int count = 0;
  double seconds = 0.0;
  double mean() const { return count > 0 ? seconds / count : 0.0; }
};
// Means by pass; their sum is all that was timed. Where both backward passes of a micro-batch ran joined, their time
// beyond a backward_input alone counts as the weight gradient's. Where no backward_input ran alone, all of it counts as
// backward_input's.
PassCosts mean_costs(const TimedPasses& forward, const TimedPasses& backward_input, const TimedPasses& backward_weight,
                     const TimedPasses& joined);

// The list with only what evaluation needs: forwards and their transfers.
InstructionList forward_only(const InstructionList& list);

}  // namespace fulmen
