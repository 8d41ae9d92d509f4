// Runs one pipeline rank's list of instructions.
#include "train/pipeline_executor.h"

#include <algorithm>

namespace fulmen {

Tensor PipelineExecutor::Pool::acquire(int micro_batch, const std::function<OwnedTensor()>& make) {
  auto free = std::ranges::find_if(entries_, [](const Entry& entry) { return entry.micro_batch < 0; });
  if (free == entries_.end()) {
    entries_.push_back({make(), -1});
    free = entries_.end() - 1;
  }
  free->micro_batch = micro_batch;
  return free->tensor;
}

Tensor PipelineExecutor::Pool::get(int micro_batch) const {
  const auto found = std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.micro_batch == micro_batch; });
  return found == entries_.end() ? Tensor() : found->tensor.view();
}

void PipelineExecutor::Pool::release(int micro_batch) {
  for (Entry& entry : entries_)
    if (entry.micro_batch == micro_batch) entry.micro_batch = -1;
}

PipelineExecutor::PipelineExecutor(Stage& stage, Communicator& pipeline, const BatchShape& shape, std::int64_t hidden,
                                   DType activation, int stashes, const Execution& execution)
    : stage_(stage), pipeline_(pipeline), execution_(execution) {
  stage.prepare(shape, stashes);
  for (int i = 0; i < stashes; ++i) slots_.push_back({std::make_unique<MicroBatchBuffers>(shape, execution), -1});
  make_buffer_ = [=] {
    return OwnedTensor(execution.device, activation, {shape.tokens(), hidden}, MemoryKind::communication, *execution.ledger);
  };
}

int PipelineExecutor::slot_of(int micro_batch) const {
  const auto found = std::ranges::find_if(slots_, [&](const Slot& slot) { return slot.micro_batch == micro_batch; });
  FULMEN_CHECK(found != slots_.end(), "micro-batch {} holds no stash", micro_batch);
  return static_cast<int>(found - slots_.begin());
}

int PipelineExecutor::acquire_slot(int micro_batch) {
  const auto free = std::ranges::find_if(slots_, [](const Slot& slot) { return slot.micro_batch < 0; });
  FULMEN_CHECK(free != slots_.end(), "no stash is free for micro-batch {}", micro_batch);
  free->micro_batch = micro_batch;
  return static_cast<int>(free - slots_.begin());
}

void PipelineExecutor::forward(const Instruction& instruction, std::span<const Batch> batches, const Tensor& loss_scale,
                               bool gradient) {
  const int m = instruction.micro_batch;
  const int slot = acquire_slot(m);
  const MicroBatch& micro_batch =
      slots_[static_cast<std::size_t>(slot)].buffers->fill(batches[static_cast<std::size_t>(m)], loss_scale, execution_);
  const Tensor output = stage_.head() ? Tensor() : outputs_.acquire(m, make_buffer_);
  stage_.forward(slot, micro_batch, inputs_.get(m), output, gradient);
  inputs_.release(m);
  if (!gradient && on_forward) on_forward(m, slot);
}

void PipelineExecutor::backward_input(const Instruction& instruction, bool with_weights) {
  const int m = instruction.micro_batch;
  const int slot = slot_of(m);
  const Tensor d_output = d_outputs_.get(m);
  const Tensor d_input = stage_.range().embedding ? Tensor() : d_inputs_.acquire(m, make_buffer_);
  const MicroBatch& micro_batch = slots_[static_cast<std::size_t>(slot)].buffers->micro_batch();
  if (with_weights)
    stage_.backward(slot, micro_batch, d_output, d_input);
  else
    stage_.backward_input(slot, micro_batch, d_output, d_input);
}

void PipelineExecutor::finish_micro_batch(int micro_batch) {
  slots_[static_cast<std::size_t>(slot_of(micro_batch))].micro_batch = -1;
  d_outputs_.release(micro_batch);
}

Tensor PipelineExecutor::transfer_buffer(const Instruction& instruction) {
  const int m = instruction.micro_batch;
  switch (instruction.operation) {
    case Operation::send_forward: return outputs_.get(m);
    case Operation::send_backward: return d_inputs_.get(m);
    case Operation::receive_forward: return inputs_.acquire(m, make_buffer_);
    case Operation::receive_backward: return d_outputs_.acquire(m, make_buffer_);
    default: break;
  }
  throw InternalError("not a transfer: " + to_string(instruction));
}

void PipelineExecutor::transfer(std::span<const Instruction> group) {
  std::vector<Transfer> transfers;
  for (const Instruction& instruction : group) {
    const bool sends = instruction.operation == Operation::send_forward || instruction.operation == Operation::send_backward;
    transfers.push_back({sends ? Transfer::Direction::send : Transfer::Direction::receive, instruction.peer,
                         transfer_buffer(instruction)});
  }
  const ProfileScope scope = ProfileScope::communication(execution_.profiler, "pipeline communication");
  pipeline_.exchange(transfers, execution_.stream);
  for (const Instruction& instruction : group) {
    if (instruction.operation == Operation::send_forward) outputs_.release(instruction.micro_batch);
    if (instruction.operation == Operation::send_backward) d_inputs_.release(instruction.micro_batch);
  }
}

void PipelineExecutor::run(const InstructionList& list, std::span<const Batch> batches, const Tensor& loss_scale,
                           bool gradient, const StepHandlers& handlers) {
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Instruction& instruction = list[i];
    if (is_transfer(instruction.operation)) {
      std::size_t end = i + 1;
      while (list[end - 1].with_next) ++end;
      transfer(std::span(list).subspan(i, end - i));
      if (!gradient)   // a stash lasts until its output was sent
        for (const Instruction& done : std::span(list).subspan(i, end - i))
          if (done.operation == Operation::send_forward) finish_micro_batch(done.micro_batch);
      i = end - 1;
      continue;
    }
    switch (instruction.operation) {
      case Operation::forward:
        forward(instruction, batches, loss_scale, gradient);
        if (!gradient && stage_.head()) finish_micro_batch(instruction.micro_batch);
        break;
      case Operation::backward_input: {
        const bool with_weights = i + 1 < list.size() && list[i + 1].operation == Operation::backward_weight &&
                                  list[i + 1].micro_batch == instruction.micro_batch;
        backward_input(instruction, with_weights);
        if (!with_weights) break;
        finish_micro_batch(instruction.micro_batch);
        ++i;
        break;
      }
      case Operation::backward_weight:
        stage_.backward_weight(slot_of(instruction.micro_batch));
        finish_micro_batch(instruction.micro_batch);
        break;
      case Operation::reduce_shared: handlers.reduce_shared(); break;
      case Operation::reduce_gradients: handlers.reduce_gradients(); break;
      case Operation::optimizer_step: handlers.optimizer_step(); break;
      default: throw InternalError("the executor cannot run " + to_string(instruction));
    }
  }
}

InstructionList forward_only(const InstructionList& list) {
  InstructionList kept;
  for (Instruction instruction : list) {
    instruction.with_next = false;
    if (instruction.operation == Operation::forward || instruction.operation == Operation::send_forward ||
        instruction.operation == Operation::receive_forward)
      kept.push_back(instruction);
  }
  return kept;
}

}  // namespace fulmen
