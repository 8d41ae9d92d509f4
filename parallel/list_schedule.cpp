// Pipeline schedules made by list scheduling.
#include "parallel/list_schedule.h"

#include <algorithm>
#include <optional>

#include "framework/error.h"

namespace fulmen {
namespace {

struct Pass {
  Operation operation;
  int micro_batch, chunk;
};

class ListScheduler {
 public:
  ListScheduler(const ListScheduleRules& rules, int ranks, int micro_batches, int chunks)
      : rules_(rules), ranks_(ranks), micro_batches_(micro_batches), chunks_(chunks), states_(at(ranks)), lists_(at(ranks)) {
    for (int group = 0; group < micro_batches; group += ranks)
      for (int c = 0; c < chunks; ++c)
        for (int m = group; m < std::min(micro_batches, group + ranks); ++m) forward_order_.push_back({Operation::forward, m, c});
    forward_tick_.assign(at(ranks * chunks), std::vector<int>(at(micro_batches), not_done));
    backward_tick_ = forward_tick_;
    for (State& state : states_) state.next_backward.assign(at(chunks), 0);
  }

  std::vector<InstructionList> run() {
    for (tick_ = 0; std::ranges::any_of(states_, [&](const State& state) { return state.weights < total(); }); ++tick_) {
      std::vector<std::optional<Pass>> passes;
      for (int rank = 0; rank < ranks_; ++rank) passes.push_back(choose(rank));
      FULMEN_CHECK(std::ranges::any_of(passes, [](const auto& pass) { return pass.has_value(); }),
                   "no pass is ready in tick {} of {} ranks, {} micro-batches, {} chunks", tick_, ranks_, micro_batches_, chunks_);
      for (int rank = 0; rank < ranks_; ++rank)
        if (passes[at(rank)]) take(rank, *passes[at(rank)]);
      for (int rank = 0; rank < ranks_; ++rank)
        if (passes[at(rank)]) transfer(rank, *passes[at(rank)]);
    }
    for (InstructionList& list : lists_) finish(list);
    return std::move(lists_);
  }

 private:
  static constexpr int not_done = -1;
  struct State {
    std::size_t next_forward = 0;     // in forward_order_
    std::vector<int> next_backward;   // micro-batch, by chunk
    std::vector<Pass> owed;           // weight gradients, in the order in which they fell due
    int ahead = 0;                    // forward passes whose backward_input is still to come
    int weights = 0;                  // backward_weight passes done
    int stashes() const { return ahead + static_cast<int>(owed.size()); }
  };

  static std::size_t at(int i) { return static_cast<std::size_t>(i); }
  int total() const { return micro_batches_ * chunks_; }
  int stage_of(int rank, int chunk) const { return chunk * ranks_ + rank; }
  bool done_before(const std::vector<std::vector<int>>& ticks, int stage, int micro_batch) const {
    const int tick = ticks[at(stage)][at(micro_batch)];
    return tick != not_done && tick < tick_;
  }

  // Forward passes that a rank may be ahead of its backward passes. With one chunk as in 1F1B; with several as in the
  // interleaved schedule of Megatron-LM (arXiv 2104.04473), for one more than its warm-up.
  int most_ahead(int rank) const {
    if (chunks_ == 1) return ranks_ - rank;
    return 2 * (ranks_ - rank - 1) + (chunks_ - 1) * ranks_ + 1;
  }

  std::optional<Pass> choose(int rank) const {
    const State& state = states_[at(rank)];
    if (!rules_.weights_wait && !state.owed.empty()) return state.owed.front();
    // Weight gradients that wait hold their stash: never more of them than the first rank has forward passes in flight.
    if (state.ahead < most_ahead(rank) && state.stashes() < most_ahead(0))
      if (const auto pass = ready_forward(rank)) return pass;
    if (const auto pass = ready_backward(rank)) return pass;
    if (!state.owed.empty()) return state.owed.front();
    return std::nullopt;
  }

  std::optional<Pass> ready_forward(int rank) const {
    const State& state = states_[at(rank)];
    if (state.next_forward == forward_order_.size()) return std::nullopt;
    const Pass& pass = forward_order_[state.next_forward];
    const int stage = stage_of(rank, pass.chunk);
    if (stage > 0 && !done_before(forward_tick_, stage - 1, pass.micro_batch)) return std::nullopt;
    return pass;
  }

  // Of the first group of micro-batches first, and of the last chunk.
  std::optional<Pass> ready_backward(int rank) const {
    std::optional<Pass> best;
    for (int c = chunks_ - 1; c >= 0; --c) {
      const int m = states_[at(rank)].next_backward[at(c)], stage = stage_of(rank, c);
      if (m == micro_batches_ || !done_before(forward_tick_, stage, m)) continue;
      if (stage + 1 < ranks_ * chunks_ && !done_before(backward_tick_, stage + 1, m)) continue;
      if (!best || m / ranks_ < best->micro_batch / ranks_) best = Pass{Operation::backward_input, m, c};
    }
    return best;
  }

  void take(int rank, const Pass& pass) {
    State& state = states_[at(rank)];
    const std::size_t stage = at(stage_of(rank, pass.chunk));
    lists_[at(rank)].push_back({pass.operation, pass.micro_batch, pass.chunk});
    switch (pass.operation) {
      case Operation::forward:
        forward_tick_[stage][at(pass.micro_batch)] = tick_;
        ++state.next_forward;
        ++state.ahead;
        break;
      case Operation::backward_input:
        backward_tick_[stage][at(pass.micro_batch)] = tick_;
        ++state.next_backward[at(pass.chunk)];
        --state.ahead;
        state.owed.push_back({Operation::backward_weight, pass.micro_batch, pass.chunk});
        break;
      default:
        state.owed.erase(state.owed.begin());
        ++state.weights;
    }
  }

  // To the rank of the neighbouring stage, in both lists: the order of all transfers is one and the same for all ranks.
  void transfer(int rank, const Pass& pass) {
    const int stage = stage_of(rank, pass.chunk);
    const bool forward = pass.operation == Operation::forward;
    const int target = forward ? stage + 1 : stage - 1;
    if (pass.operation == Operation::backward_weight || target < 0 || target == ranks_ * chunks_) return;
    const int peer = target % ranks_;
    add_transfer(rank, {forward ? Operation::send_forward : Operation::send_backward, pass.micro_batch, pass.chunk, peer});
    add_transfer(peer, {forward ? Operation::receive_forward : Operation::receive_backward, pass.micro_batch, target / ranks_, rank});
  }

  // A rank's transfers between two passes proceed together.
  void add_transfer(int rank, const Instruction& instruction) {
    InstructionList& list = lists_[at(rank)];
    if (!list.empty() && is_transfer(list.back().operation)) list.back().with_next = true;
    list.push_back(instruction);
  }

  void finish(InstructionList& list) const {
    list.push_back({.operation = Operation::reduce_shared});
    for (int c = 0; c < chunks_; ++c) list.push_back({.operation = Operation::reduce_gradients, .chunk = c});
    list.push_back({.operation = Operation::optimizer_step});
  }

  ListScheduleRules rules_;
  int ranks_, micro_batches_, chunks_;
  int tick_ = 0;
  std::vector<Pass> forward_order_;
  std::vector<std::vector<int>> forward_tick_, backward_tick_;   // when a stage did a micro-batch's pass
  std::vector<State> states_;
  std::vector<InstructionList> lists_;
};

}  // namespace

std::vector<InstructionList> make_list_schedule(const ListScheduleRules& rules, int ranks, int micro_batches, int chunks) {
  return ListScheduler(rules, ranks, micro_batches, chunks).run();
}

}  // namespace fulmen
