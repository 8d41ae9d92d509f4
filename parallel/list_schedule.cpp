// Pipeline schedules made by list scheduling.
#include "parallel/list_schedule.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <optional>
#include <queue>
#include <utility>

#include "framework/error.h"

namespace fulmen {
namespace {

using Ticks = std::int64_t;
constexpr Ticks never = -1;
constexpr Ticks far = std::numeric_limits<Ticks>::max() / 2;

struct Pass {
  Operation operation;
  int micro_batch, chunk;
};

std::size_t at(int i) { return static_cast<std::size_t>(i); }

// Whole numbers: passes that take the same time end together, whatever came before them.
struct PassTicks {
  Ticks forward, backward_input, backward_weight;
  Ticks of(Operation operation) const {
    if (operation == Operation::forward) return forward;
    return operation == Operation::backward_input ? backward_input : backward_weight;
  }
};

std::vector<PassTicks> ticks_of(const std::vector<PassCosts>& stages) {
  double longest = 0.0;
  for (const PassCosts& costs : stages)
    longest = std::max({longest, costs.forward, costs.backward_input, costs.backward_weight});
  const auto ticks = [&](double cost) { return longest > 0.0 ? std::llround(cost / longest * 1e6) : Ticks{1}; };
  std::vector<PassTicks> list;
  for (const PassCosts& costs : stages)
    list.push_back({ticks(costs.forward), ticks(costs.backward_input), ticks(costs.backward_weight)});
  return list;
}

class ListScheduler {
 public:
  ListScheduler(const std::vector<ListScheduleRules>& rules, const PipelineShape& shape,
                const std::vector<PassCosts>& stages)
      : rules_(rules),
        ranks_(shape.ranks),
        micro_batches_(shape.micro_batches),
        chunks_(shape.chunks),
        most_stashes_(most_stashes(shape)),
        ticks_(ticks_of(stages)),
        states_(at(shape.ranks)),
        lists_(at(shape.ranks)) {
    for (int group = 0; group < micro_batches_; group += ranks_)
      for (int c = 0; c < chunks_; ++c)
        for (int m = group; m < std::min(micro_batches_, group + ranks_); ++m)
          forward_order_.push_back({Operation::forward, m, c});
    for (State& state : states_) state.chunks.resize(at(chunks_));
  }

  std::vector<InstructionList> run() {
    for (int rank = 0; rank < ranks_; ++rank) roused_.push_back(rank);
    for (start_passes(); !ends_.empty(); start_passes()) {
      now_ = ends_.top().first;
      while (!ends_.empty() && ends_.top().first == now_) {
        const int rank = ends_.top().second;
        ends_.pop();
        end_pass(rank);
      }
    }
    for (int rank = 0; rank < ranks_; ++rank) {
      FULMEN_CHECK(states_[at(rank)].weights == micro_batches_ * chunks_,
                   "no pass is ready on rank {} of {} ranks, {} micro-batches, {} chunks", rank, ranks_, micro_batches_,
                   chunks_);
      finish(lists_[at(rank)]);
    }
    return std::move(lists_);
  }

 private:
  // Micro-batches of each kind done, and those whose input is there. All go in the same order.
  struct Chunk {
    int forwards = 0, backwards = 0;
    int inputs = 0, gradients = 0;
  };
  struct State {
    std::vector<Chunk> chunks;
    std::size_t next_forward = 0;  // in forward_order_
    std::deque<Pass> owed;         // weight gradients, in the order in which they fell due
    int ahead = 0;                 // forward passes whose backward_input is still to come
    int weights = 0;               // backward_weight passes done
    Pass pass{};                   // under way, or the last pass
    Ticks end = never;             // of `pass`; never: the rank stands still
    std::vector<Ticks> transfers;  // when those at the list's end were
  };

  int stages() const { return ranks_ * chunks_; }
  int stage_of(int rank, int chunk) const { return chunk * ranks_ + rank; }
  const ListScheduleRules& rules_of(int rank) const { return rules_[at(rank)]; }

  // For one more forward pass. Weight gradients that wait hold their stash.
  bool has_room(int rank) const {
    const State& state = states_[at(rank)];
    const int share = chunks_ == 1 ? ranks_ - rank : 2 * (ranks_ - rank - 1) + (chunks_ - 1) * ranks_ + 1;
    return state.ahead + static_cast<int>(state.owed.size()) < most_stashes_ &&
           (rules_of(rank).far_ahead || state.ahead < share);
  }

  std::optional<Pass> ready_forward(int rank) const {
    const State& state = states_[at(rank)];
    if (state.next_forward == forward_order_.size() || !has_room(rank)) return std::nullopt;
    const Pass& pass = forward_order_[state.next_forward];
    const bool first_stage = stage_of(rank, pass.chunk) == 0;
    if (!first_stage && state.chunks[at(pass.chunk)].inputs <= pass.micro_batch) return std::nullopt;
    return pass;
  }

  // The first group of micro-batches first, and the last chunk.
  std::optional<Pass> ready_backward(int rank) const {
    std::optional<Pass> best;
    for (int c = chunks_ - 1; c >= 0; --c) {
      const Chunk& chunk = states_[at(rank)].chunks[at(c)];
      const bool last_stage = stage_of(rank, c) + 1 == stages();
      const int m = chunk.backwards;
      if (m >= (last_stage ? chunk.forwards : chunk.gradients)) continue;
      if (!best || m / ranks_ < best->micro_batch / ranks_) best = Pass{Operation::backward_input, m, c};
    }
    return best;
  }

  // The weight gradient that must not wait.
  std::optional<Pass> due_weight(int rank) const {
    const State& state = states_[at(rank)];
    if (state.owed.empty()) return std::nullopt;
    if (!rules_of(rank).weights_wait) return state.owed.front();
    if (!rules_of(rank).joined || state.pass.operation != Operation::backward_input ||
        stage_of(rank, state.pass.chunk) > 0)
      return std::nullopt;
    const auto first = std::ranges::find(state.owed, 0, &Pass::chunk);
    return first->micro_batch == state.pass.micro_batch ? std::optional(*first) : std::nullopt;
  }

  std::optional<Pass> choose(int rank) const {
    if (const auto weight = due_weight(rank)) return weight;
    const auto forward = ready_forward(rank), backward = ready_backward(rank);
    return forward && !(backward && rules_of(rank).backward_first) ? forward : backward;
  }

  // For when nothing else is ready.
  std::optional<Pass> choose_weight(int rank) const {
    const State& state = states_[at(rank)];
    if (state.owed.empty()) return std::nullopt;
    const Pass& weight = state.owed.front();
    const Ticks end = now_ + ticks_[at(stage_of(rank, weight.chunk))].backward_weight;
    return rules_of(rank).patient && next_arrival(rank) < end ? std::nullopt : std::optional(weight);
  }

  // When the neighbours' passes under way make something ready here.
  Ticks next_arrival(int rank) const {
    const State& state = states_[at(rank)];
    Ticks arrival = far;
    for (const int peer : {(rank + ranks_ - 1) % ranks_, (rank + 1) % ranks_}) {
      const State& other = states_[at(peer)];
      const auto target = target_of(peer, other.pass);
      if (other.end == never || !target || *target % ranks_ != rank) continue;
      const bool forward = other.pass.operation == Operation::forward;
      const bool useful = !forward || (has_room(rank) && forward_order_[state.next_forward].chunk == *target / ranks_ &&
                                       forward_order_[state.next_forward].micro_batch == other.pass.micro_batch);
      if (useful) arrival = std::min(arrival, other.end);
    }
    return arrival;
  }

  // The stage that uses what a pass makes.
  std::optional<int> target_of(int rank, const Pass& pass) const {
    const int target = stage_of(rank, pass.chunk) + (pass.operation == Operation::forward ? 1 : -1);
    if (pass.operation == Operation::backward_weight || target < 0 || target == stages()) return std::nullopt;
    return target;
  }

  // Whoever has nothing but weight gradients to do decides when it is known what the others do.
  void start_passes() {
    for (const int rank : roused_)
      if (states_[at(rank)].end == never)
        if (const auto pass = choose(rank)) start(rank, *pass);
    for (const int rank : roused_)
      if (states_[at(rank)].end == never)
        if (const auto pass = choose_weight(rank)) start(rank, *pass);
    roused_.clear();
  }

  void start(int rank, const Pass& pass) {
    State& state = states_[at(rank)];
    Chunk& chunk = state.chunks[at(pass.chunk)];
    lists_[at(rank)].push_back({pass.operation, pass.micro_batch, pass.chunk});
    state.transfers.clear();
    state.pass = pass;
    state.end = now_ + ticks_[at(stage_of(rank, pass.chunk))].of(pass.operation);
    ends_.emplace(state.end, rank);
    switch (pass.operation) {
      case Operation::forward:
        ++chunk.forwards;
        ++state.next_forward;
        ++state.ahead;
        break;
      case Operation::backward_input:
        ++chunk.backwards;
        --state.ahead;
        state.owed.push_back({Operation::backward_weight, pass.micro_batch, pass.chunk});
        break;
      default: state.owed.erase(std::ranges::find(state.owed, pass.chunk, &Pass::chunk)); ++state.weights;
    }
  }

  // To the rank of the neighbouring stage, in both lists: the order of all transfers is one and the same for all ranks.
  void end_pass(int rank) {
    State& state = states_[at(rank)];
    state.end = never;
    roused_.push_back(rank);
    const auto target = target_of(rank, state.pass);
    if (!target) return;
    const int peer = *target % ranks_, chunk = *target / ranks_;
    const bool forward = state.pass.operation == Operation::forward;
    add_transfer(rank, {forward ? Operation::send_forward : Operation::send_backward, state.pass.micro_batch,
                        state.pass.chunk, peer});
    add_transfer(peer, {forward ? Operation::receive_forward : Operation::receive_backward, state.pass.micro_batch,
                        chunk, rank});
    Chunk& there = states_[at(peer)].chunks[at(chunk)];
    ++(forward ? there.inputs : there.gradients);
    roused_.push_back(peer);
  }

  // A rank's transfers between two passes proceed together. Receives that were over while the first pass was still
  // making what is sent now can overlap with that pass.
  void add_transfer(int rank, const Instruction& instruction) {
    InstructionList& list = lists_[at(rank)];
    std::vector<Ticks>& times = states_[at(rank)].transfers;
    if (!times.empty()) list.back().with_next = true;
    const auto earlier = std::ranges::count_if(times, [&](Ticks time) { return time < now_; });
    const bool sends =
        instruction.operation == Operation::send_forward || instruction.operation == Operation::send_backward;
    if (sends && earlier > 0) list[list.size() - times.size() + at(static_cast<int>(earlier)) - 1].with_next = false;
    list.push_back(instruction);
    times.push_back(now_);
  }

  void finish(InstructionList& list) const {
    list.push_back({.operation = Operation::reduce_shared});
    for (int c = 0; c < chunks_; ++c) list.push_back({.operation = Operation::reduce_gradients, .chunk = c});
    list.push_back({.operation = Operation::optimizer_step});
  }

  const std::vector<ListScheduleRules>& rules_;
  int ranks_, micro_batches_, chunks_, most_stashes_;
  std::vector<PassTicks> ticks_;  // by stage
  Ticks now_ = 0;
  std::vector<Pass> forward_order_;
  std::vector<State> states_;
  std::vector<InstructionList> lists_;
  using End = std::pair<Ticks, int>;  // of a rank's pass
  std::priority_queue<End, std::vector<End>, std::greater<>> ends_;
  std::vector<int> roused_;  // ranks that ended a pass or received something, since passes were last started
};

}  // namespace

int most_stashes(const PipelineShape& shape) {
  return shape.chunks == 1 ? shape.ranks : 2 * (shape.ranks - 1) + (shape.chunks - 1) * shape.ranks + 1;
}

std::vector<InstructionList> make_list_schedule(const std::vector<ListScheduleRules>& rules, const PipelineShape& shape,
                                                const std::vector<PassCosts>& stages) {
  FULMEN_CHECK(rules.size() == at(shape.ranks) && stages.size() == at(shape.ranks * shape.chunks),
               "{} rules and {} stages for {} ranks of {} chunks", rules.size(), stages.size(), shape.ranks,
               shape.chunks);
  return ListScheduler(rules, shape, stages).run();
}

}  // namespace fulmen
