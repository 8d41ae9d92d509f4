// Runs one pipeline rank's list of instructions.
#include "train/pipeline_executor.h"

#include <algorithm>

namespace fulmen {

namespace {

// Groups of transfers under way at once. More would hold more buffers for what is not yet needed.
constexpr std::size_t most_in_flight = 4;

bool is_send(Operation operation) {
  return operation == Operation::send_forward || operation == Operation::send_backward;
}

std::size_t end_of_group(const InstructionList& list, std::size_t begin) {
  while (list[begin].with_next) ++begin;
  return begin + 1;
}

}  // namespace

Tensor PipelineExecutor::Pool::acquire(const Instruction& user, const std::function<OwnedTensor()>& make) {
  auto free = std::ranges::find_if(entries_, [](const Entry& entry) { return entry.micro_batch < 0; });
  if (free == entries_.end()) {
    entries_.push_back({make()});
    free = entries_.end() - 1;
  }
  free->micro_batch = user.micro_batch;
  free->chunk = user.chunk;
  return free->tensor;
}

Tensor PipelineExecutor::Pool::get(int micro_batch, int chunk) const {
  const auto found = std::ranges::find_if(
      entries_, [&](const Entry& entry) { return entry.micro_batch == micro_batch && entry.chunk == chunk; });
  return found == entries_.end() ? Tensor() : found->tensor.view();
}

void PipelineExecutor::Pool::release(int micro_batch, int chunk) {
  for (Entry& entry : entries_)
    if (entry.micro_batch == micro_batch && entry.chunk == chunk) entry.micro_batch = -1;
}

PipelineExecutor::PipelineExecutor(std::vector<Stage*> stages, Communicator& pipeline, const PipelineOptions& options,
                                   const Execution& execution)
    : pipeline_(pipeline), execution_(execution), overlap_(options.overlap), waiting_(execution.stream) {
  for (std::size_t c = 0; c < stages.size(); ++c) {
    stages[c]->prepare(options.shape, options.slots[c]);
    chunks_.push_back({stages[c], {}, {}});
    for (int i = 0; i < options.slots[c]; ++i)
      chunks_.back().slots.push_back(
          {std::make_unique<MicroBatchBuffers>(options.shape, options.sample_scale, execution), -1});
  }
  std::int64_t elements = 0;
  for (const Stage* stage : stages)
    elements = std::max({elements, stage->entering_elements(), stage->leaving_elements()});
  make_buffer_ = [=] {
    return OwnedTensor(execution.device, options.activation, {elements}, MemoryKind::communication, *execution.ledger);
  };
}

PipelineExecutor::Slot& PipelineExecutor::slot_of(const Instruction& instruction) {
  std::vector<Slot>& slots = chunk_of(instruction).slots;
  const auto found =
      std::ranges::find_if(slots, [&](const Slot& slot) { return slot.micro_batch == instruction.micro_batch; });
  FULMEN_CHECK(found != slots.end(), "{}: the micro-batch holds no stash", to_string(instruction));
  return *found;
}

int PipelineExecutor::acquire_slot(const Instruction& instruction) {
  std::vector<Slot>& slots = chunk_of(instruction).slots;
  const auto free = std::ranges::find_if(slots, [](const Slot& slot) { return slot.micro_batch < 0; });
  FULMEN_CHECK(free != slots.end(), "{}: no stash is free", to_string(instruction));
  free->micro_batch = instruction.micro_batch;
  return static_cast<int>(free - slots.begin());
}

void PipelineExecutor::forward(const Instruction& instruction, std::span<const Batch> batches, const Tensor& loss_scale,
                               bool gradient) {
  const int m = instruction.micro_batch, c = instruction.chunk;
  Chunk& chunk = chunk_of(instruction);
  await(Operation::receive_forward, instruction);
  const int slot = acquire_slot(instruction);
  const MicroBatch& micro_batch =
      slot_of(instruction).buffers->fill(batches[static_cast<std::size_t>(m)], loss_scale, execution_);
  const Tensor output = chunk.stage->head() ? Tensor() : outputs_.acquire(instruction, make_buffer_);
  pass(Timed::forward, instruction,
       [&] { chunk.stage->forward(slot, micro_batch, inputs_.get(m, c), output, gradient); });
  inputs_.release(m, c);
  if (gradient) return;
  if (chunk.stage->head() && on_forward) on_forward(m, slot);
  finish_micro_batch(instruction);
}

void PipelineExecutor::backward_input(const Instruction& instruction, bool with_weights) {
  Chunk& chunk = chunk_of(instruction);
  await(Operation::receive_backward, instruction);
  Slot& slot = slot_of(instruction);
  const int number = static_cast<int>(&slot - chunk.slots.data());
  const Tensor d_output = d_outputs_.get(instruction.micro_batch, instruction.chunk);
  const Tensor d_input = chunk.stage->range().embedding ? Tensor() : d_inputs_.acquire(instruction, make_buffer_);
  pass(with_weights ? Timed::joined : Timed::backward_input, instruction, [&] {
    if (with_weights)
      chunk.stage->backward(number, slot.buffers->micro_batch(), d_output, d_input);
    else
      chunk.stage->backward_input(number, slot.buffers->micro_batch(), d_output, d_input);
  });
}

void PipelineExecutor::finish_micro_batch(const Instruction& instruction) {
  slot_of(instruction).micro_batch = -1;
  d_outputs_.release(instruction.micro_batch, instruction.chunk);
}

Tensor PipelineExecutor::transfer_buffer(const Instruction& instruction) {
  const Stage& stage = *chunk_of(instruction).stage;
  const auto behind = [&](const Tensor& buffer) { return buffer.slice(0, 0, stage.leaving_elements()); };
  const auto in_front = [&](const Tensor& buffer) { return buffer.slice(0, 0, stage.entering_elements()); };
  switch (instruction.operation) {
    case Operation::send_forward: return behind(outputs_.get(instruction.micro_batch, instruction.chunk));
    case Operation::send_backward: return in_front(d_inputs_.get(instruction.micro_batch, instruction.chunk));
    case Operation::receive_forward: return in_front(inputs_.acquire(instruction, make_buffer_));
    case Operation::receive_backward: return behind(d_outputs_.acquire(instruction, make_buffer_));
    default: break;
  }
  throw InternalError("not a transfer: " + to_string(instruction));
}

void PipelineExecutor::transfer(const InstructionList& list, std::size_t begin) {
  const std::size_t end = end_of_group(list, begin);
  if (begin >= started_end_) {
    start(std::span(list).subspan(begin, end - begin));
    started_end_ = end;
    if (!overlap_) return await_all();
    while (in_flight_.size() >= most_in_flight) {
      complete(in_flight_.front());
      in_flight_.pop_front();
    }
  } else if (in_flight_.size() >= most_in_flight) {
    return;  // what comes next can wait longer than passes may
  }
  const auto next = std::find_if(list.begin() + static_cast<std::ptrdiff_t>(end), list.end(),
                                 [](const Instruction& instruction) { return is_transfer(instruction.operation); });
  if (next == list.end()) return;
  const std::size_t next_begin = static_cast<std::size_t>(next - list.begin()),
                    next_end = end_of_group(list, next_begin);
  const std::span<const Instruction> group = std::span(list).subspan(next_begin, next_end - next_begin);
  if (std::ranges::any_of(group, [](const Instruction& instruction) { return is_send(instruction.operation); })) return;
  start(group);
  started_end_ = next_end;
}

void PipelineExecutor::start(std::span<const Instruction> group) {
  std::vector<Transfer> transfers;
  for (const Instruction& instruction : group)
    transfers.push_back({is_send(instruction.operation) ? Transfer::Direction::send : Transfer::Direction::receive,
                         instruction.peer, transfer_buffer(instruction)});
  Started started{{group.begin(), group.end()}, {}};
  if (overlap_) {
    started.pending = pipeline_.start_exchange(transfers, execution_.stream);
  } else {
    const ProfileScope scope = ProfileScope::communication(execution_.profiler, "pipeline communication");
    waiting_.start();
    pipeline_.exchange(transfers, execution_.stream);
    waiting_.stop();
  }
  in_flight_.push_back(std::move(started));
}

// The buffers of what was sent are free now.
void PipelineExecutor::complete(Started& started) {
  if (!started.pending.complete()) {
    waiting_.start();
    started.pending.wait(execution_.stream);
    waiting_.stop();
  }
  for (const Instruction& instruction : started.group) {
    if (instruction.operation == Operation::send_forward) outputs_.release(instruction.micro_batch, instruction.chunk);
    if (instruction.operation == Operation::send_backward)
      d_inputs_.release(instruction.micro_batch, instruction.chunk);
  }
}

// Waits for the transfer that brings what `user` is about to read, if it is still under way.
void PipelineExecutor::await(Operation operation, const Instruction& user) {
  const auto brings = [&](const Instruction& instruction) {
    return instruction.operation == operation && instruction.micro_batch == user.micro_batch &&
           instruction.chunk == user.chunk;
  };
  const auto found = std::ranges::find_if(
      in_flight_, [&](const Started& started) { return std::ranges::any_of(started.group, brings); });
  if (found == in_flight_.end()) return;
  complete(*found);
  in_flight_.erase(found);
}

void PipelineExecutor::await_all() {
  for (Started& started : in_flight_) complete(started);
  in_flight_.clear();
}

void PipelineExecutor::time_passes() {
  for (Chunk& chunk : chunks_)
    while (chunk.timers.size() < timed_kinds) chunk.timers.push_back({StreamTimer(execution_.stream)});
}

PassCosts PipelineExecutor::pass_seconds(int chunk) {
  std::vector<PassTimer>& timers = chunks_[static_cast<std::size_t>(chunk)].timers;
  FULMEN_CHECK(!timers.empty(), "passes are not timed");
  const auto timed = [&](Timed kind) {
    PassTimer& timer = timers[static_cast<std::size_t>(kind)];
    return TimedPasses{timer.passes, timer.timer.seconds()};
  };
  return mean_costs(timed(Timed::forward), timed(Timed::backward_input), timed(Timed::backward_weight),
                    timed(Timed::joined));
}

void PipelineExecutor::pass(Timed kind, const Instruction& instruction, const std::function<void()>& work) {
  std::vector<PassTimer>& timers = chunk_of(instruction).timers;
  if (timers.empty()) return work();
  PassTimer& timed = timers[static_cast<std::size_t>(kind)];
  timed.timer.start();
  work();
  timed.timer.stop();
  ++timed.passes;
}

void PipelineExecutor::run(const InstructionList& list, std::span<const Batch> batches, const Tensor& loss_scale,
                           bool gradient, const StepHandlers& handlers) {
  started_end_ = 0;
  waiting_.reset();
  for (Chunk& chunk : chunks_)
    for (PassTimer& timed : chunk.timers) {
      timed.timer.reset();
      timed.passes = 0;
    }
  for (std::size_t i = 0; i < list.size(); ++i) {
    const Instruction& instruction = list[i];
    if (is_transfer(instruction.operation)) {
      transfer(list, i);
      i = end_of_group(list, i) - 1;
      continue;
    }
    switch (instruction.operation) {
      case Operation::forward: forward(instruction, batches, loss_scale, gradient); break;
      case Operation::backward_input: {
        const bool with_weights = i + 1 < list.size() && list[i + 1].operation == Operation::backward_weight &&
                                  list[i + 1].micro_batch == instruction.micro_batch &&
                                  list[i + 1].chunk == instruction.chunk;
        backward_input(instruction, with_weights);
        if (!with_weights) break;
        finish_micro_batch(instruction);
        ++i;
        break;
      }
      case Operation::backward_weight: {
        Chunk& chunk = chunk_of(instruction);
        pass(Timed::backward_weight, instruction,
             [&] { chunk.stage->backward_weight(static_cast<int>(&slot_of(instruction) - chunk.slots.data())); });
        finish_micro_batch(instruction);
        break;
      }
      case Operation::reduce_shared:
        await_all();
        handlers.reduce_shared();
        break;
      case Operation::reduce_gradients:
        if (static_cast<std::size_t>(instruction.chunk) + 1 == chunks_.size()) handlers.reduce_gradients();
        break;
      case Operation::optimizer_step: handlers.optimizer_step(); break;
      default: throw InternalError("the executor cannot run " + to_string(instruction));
    }
  }
  await_all();
}

PassCosts mean_costs(const TimedPasses& forward, const TimedPasses& backward_input, const TimedPasses& backward_weight,
                     const TimedPasses& joined) {
  PassCosts costs{forward.mean(), backward_input.mean(), backward_weight.mean()};
  if (joined.count == 0) return costs;
  if (backward_input.count == 0) return {costs.forward, joined.mean(), 0.0};
  const double weights = backward_weight.seconds + joined.seconds - joined.count * costs.backward_input;
  costs.backward_weight = std::max(0.0, weights / (backward_weight.count + joined.count));
  return costs;
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
