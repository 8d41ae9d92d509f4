// The generators of pipeline schedules.
#include "parallel/pipeline_schedule.h"

#include <algorithm>

#include "framework/error.h"
#include "parallel/schedule_search.h"

namespace fulmen {
namespace {

// Writes the list of one stage. Transfers that its place in the pipeline does not need are left out.
class StageList {
 public:
  StageList(int stage, int stages) : stage_(stage), stages_(stages) {}

  InstructionList finish() && {
    add({.operation = Operation::reduce_shared});
    add({.operation = Operation::reduce_gradients});
    add({.operation = Operation::optimizer_step});
    return std::move(list_);
  }

  void receive_forward(int micro_batch) {
    if (stage_ > 0) add({Operation::receive_forward, micro_batch, 0, stage_ - 1});
  }

  void forward(int micro_batch) { add({Operation::forward, micro_batch}); }

  void send_forward(int micro_batch) {
    if (stage_ + 1 < stages_) add({Operation::send_forward, micro_batch, 0, stage_ + 1});
  }

  // The next stage sends the gradient of one micro-batch together with receiving another's activations; so here too.
  void send_forward_and_receive_backward(int sent, int received) {
    send_forward(sent);
    join_last();
    receive_backward(received);
  }

  void receive_backward(int micro_batch) {
    if (stage_ + 1 < stages_) add({Operation::receive_backward, micro_batch, 0, stage_ + 1});
  }

  void backward_input(int micro_batch) { add({Operation::backward_input, micro_batch}); }

  void send_backward(int micro_batch) {
    if (stage_ > 0) add({Operation::send_backward, micro_batch, 0, stage_ - 1});
  }

  void send_backward_and_receive_forward(int sent, int received) {
    send_backward(sent);
    join_last();
    receive_forward(received);
  }

  void backward_weight(int micro_batch) { add({Operation::backward_weight, micro_batch}); }

 private:
  void add(const Instruction& instruction) { list_.push_back(instruction); }

  // Only called between two transfers with the same neighbour: both are there or neither is.
  void join_last() {
    if (!list_.empty() && is_transfer(list_.back().operation)) list_.back().with_next = true;
  }

  int stage_;
  int stages_;
  InstructionList list_;
};

InstructionList gpipe(int stage, int stages, int micro_batches) {
  StageList list(stage, stages);
  for (int m = 0; m < micro_batches; ++m) {
    list.receive_forward(m);
    list.forward(m);
    list.send_forward(m);
  }
  for (int m = 0; m < micro_batches; ++m) {
    list.receive_backward(m);
    list.backward_input(m);
    list.send_backward(m);
    list.backward_weight(m);
  }
  return std::move(list).finish();
}

InstructionList one_forward_one_backward(int stage, int stages, int micro_batches) {
  StageList list(stage, stages);
  const int warm_up = std::min(stages - 1 - stage, micro_batches);
  const int steady = micro_batches - warm_up;
  for (int m = 0; m < warm_up; ++m) {
    list.receive_forward(m);
    list.forward(m);
    list.send_forward(m);
  }
  if (steady > 0) list.receive_forward(warm_up);
  for (int m = 0; m < steady; ++m) {
    list.forward(warm_up + m);
    list.send_forward_and_receive_backward(warm_up + m, m);
    list.backward_input(m);
    if (m + 1 < steady)
      list.send_backward_and_receive_forward(m, warm_up + m + 1);
    else
      list.send_backward(m);
    list.backward_weight(m);
  }
  for (int m = steady; m < micro_batches; ++m) {
    list.receive_backward(m);
    list.backward_input(m);
    list.send_backward(m);
    list.backward_weight(m);
  }
  return std::move(list).finish();
}

std::vector<InstructionList> written_out(ScheduleKind kind, int ranks, int micro_batches) {
  std::vector<InstructionList> lists;
  for (int rank = 0; rank < ranks; ++rank)
    lists.push_back(kind == ScheduleKind::gpipe ? gpipe(rank, ranks, micro_batches)
                                                : one_forward_one_backward(rank, ranks, micro_batches));
  return lists;
}

}  // namespace

std::string_view name_of(ScheduleKind kind) {
  switch (kind) {
    case ScheduleKind::gpipe: return "gpipe";
    case ScheduleKind::one_forward_one_backward: return "1f1b";
    case ScheduleKind::interleaved: return "interleaved";
    case ScheduleKind::zero_bubble: return "zero-bubble";
  }
  throw InternalError("unknown pipeline schedule");
}

ScheduleKind parse_schedule_kind(std::string_view name) {
  for (const ScheduleKind kind : {ScheduleKind::gpipe, ScheduleKind::one_forward_one_backward,
                                  ScheduleKind::interleaved, ScheduleKind::zero_bubble})
    if (name == name_of(kind)) return kind;
  throw UserError("parallel.schedule", fmt::format("'{}' is unknown", name),
                  "use gpipe, 1f1b, interleaved or zero-bubble");
}

std::vector<InstructionList> make_schedule(ScheduleKind kind, int ranks, int micro_batches, int chunks,
                                           const ScheduleCosts& costs) {
  FULMEN_CHECK(ranks >= 1 && micro_batches >= 1 && chunks >= 1,
               "a schedule of {} ranks, {} micro-batches and {} chunks", ranks, micro_batches, chunks);
  if (chunks > 1 && ranks == 1)
    throw UserError("parallel.chunks", fmt::format("{} model chunks on a single pipeline rank", chunks),
                    "use 1, or more pipeline ranks");
  const bool listed = kind == ScheduleKind::interleaved || kind == ScheduleKind::zero_bubble;
  if (chunks > 1 && !listed)
    throw UserError("parallel.chunks",
                    fmt::format("the schedule {} runs one model chunk per rank, not {}", name_of(kind), chunks),
                    "use 1, or parallel.schedule interleaved or zero-bubble");
  if (!listed) return written_out(kind, ranks, micro_batches);
  const PipelineShape shape{ranks, micro_batches, chunks};
  std::vector<std::vector<InstructionList>> known;
  if (chunks == 1) known.push_back(written_out(ScheduleKind::one_forward_one_backward, ranks, micro_batches));
  if (kind == ScheduleKind::interleaved) return find_list_schedule(false, shape, costs, std::move(known));
  // A schedule that needs no idle time is never slower for having some.
  if (chunks > 1) known.push_back(find_list_schedule(false, shape, costs, {}));
  return find_list_schedule(true, shape, costs, std::move(known));
}

}  // namespace fulmen
