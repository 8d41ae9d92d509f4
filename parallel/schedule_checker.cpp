// Checks a pipeline schedule before anything runs: first each rank's own list, then all ranks together in a simulation
// with rendezvous sends.
#include "parallel/schedule_checker.h"

#include <algorithm>
#include <array>
#include <deque>

#include "framework/error.h"
#include "framework/text.h"

namespace fulmen {
namespace {

constexpr std::size_t operations = static_cast<std::size_t>(Operation::optimizer_step) + 1;
// The events of one micro-batch on one chunk, exactly once each where the stage needs it.
constexpr std::array micro_batch_operations = {
    Operation::receive_forward, Operation::forward,       Operation::send_forward,   Operation::receive_backward,
    Operation::backward_input,  Operation::send_backward, Operation::backward_weight};

std::size_t index_of(Operation operation) { return static_cast<std::size_t>(operation); }

bool is_send(Operation operation) {
  return operation == Operation::send_forward || operation == Operation::send_backward;
}

bool moves_activations(Operation operation) {
  return operation == Operation::send_forward || operation == Operation::receive_forward;
}

bool has_micro_batch(Operation operation) {
  return std::ranges::find(micro_batch_operations, operation) != micro_batch_operations.end();
}

struct Dimensions {
  int ranks, micro_batches, chunks;
};

// Chunk c of rank r is stage c * ranks + r of the whole model.
int stage_of(const Dimensions& dimensions, int rank, int chunk) { return chunk * dimensions.ranks + rank; }

std::string place(int rank, std::size_t position, const Instruction& instruction) {
  return fmt::format("rank {}, instruction {} ({})", rank, position, to_string(instruction));
}

// Walks one rank's list: every instruction is due, and none is missing at the end.
class ListChecker {
 public:
  ListChecker(const Dimensions& dimensions, int rank, const InstructionList& list)
      : dimensions_(dimensions), rank_(rank), list_(list), chunks_(static_cast<std::size_t>(dimensions.chunks)) {
    for (Chunk& chunk : chunks_) chunk.micro_batches.resize(static_cast<std::size_t>(dimensions.micro_batches));
  }

  // Adds to the report the most stashes and slots in use at once.
  void check(ScheduleReport& report) {
    for (position_ = 0; position_ < list_.size(); ++position_) check_form(list_[position_]);
    for (position_ = 0; position_ < list_.size(); ++position_) check_turn(list_[position_]);
    check_end();
    report.peak_stash.push_back(peak_);
    report.peak_slots.emplace_back();
    for (const Chunk& chunk : chunks_) report.peak_slots.back().push_back(chunk.peak_slots);
  }

 private:
  struct MicroBatch {
    std::array<bool, operations> done{};
  };
  struct Chunk {
    std::vector<MicroBatch> micro_batches;
    std::array<int, operations> next{};  // the micro-batch that is due
    bool reduced = false;
    int slots = 0, peak_slots = 0;  // micro-batches between forward and backward_weight
  };

  [[noreturn]] void refuse(const std::string& what) const {
    throw InternalError(
        fmt::format("pipeline schedule refused: {}: {}", place(rank_, position_, list_[position_]), what));
  }

  [[noreturn]] void refuse_end(const std::string& what) const {
    throw InternalError(fmt::format("pipeline schedule refused: rank {}, end of the list: {}", rank_, what));
  }

  bool first_stage(int chunk) const { return stage_of(dimensions_, rank_, chunk) == 0; }
  bool last_stage(int chunk) const {
    return stage_of(dimensions_, rank_, chunk) == dimensions_.ranks * dimensions_.chunks - 1;
  }

  bool needed(Operation operation, int chunk) const {
    switch (operation) {
      case Operation::receive_forward:
      case Operation::send_backward: return !first_stage(chunk);
      case Operation::send_forward:
      case Operation::receive_backward: return !last_stage(chunk);
      default: return true;
    }
  }

  // Earlier events that the same micro-batch needs on the same chunk.
  static std::vector<Operation> prerequisites(Operation operation) {
    switch (operation) {
      case Operation::forward: return {Operation::receive_forward};
      case Operation::send_forward: return {Operation::forward};
      case Operation::backward_input: return {Operation::forward, Operation::receive_backward};
      case Operation::send_backward:
      case Operation::backward_weight: return {Operation::backward_input};
      default: return {};
    }
  }

  void check_form(const Instruction& instruction) const {
    if (instruction.chunk < 0 || instruction.chunk >= dimensions_.chunks)
      refuse(fmt::format("there are {} model chunks", dimensions_.chunks));
    if (has_micro_batch(instruction.operation)) {
      if (instruction.micro_batch < 0 || instruction.micro_batch >= dimensions_.micro_batches)
        refuse(fmt::format("there are {} micro-batches", dimensions_.micro_batches));
    } else if (instruction.micro_batch != -1) {
      refuse("a micro-batch has no meaning here");
    }
    if (is_transfer(instruction.operation))
      check_peer(instruction);
    else if (instruction.peer != -1 || instruction.with_next)
      refuse("only transfers have a peer or form groups");
    if (!instruction.with_next) return;
    if (position_ + 1 == list_.size() || !is_transfer(list_[position_ + 1].operation))
      refuse("is grouped with the next instruction, which is no transfer");
  }

  void check_peer(const Instruction& instruction) const {
    if (!needed(instruction.operation, instruction.chunk)) refuse("this end of the pipeline has no such transfer");
    const bool to_next =
        instruction.operation == Operation::send_forward || instruction.operation == Operation::receive_backward;
    const int peer = (rank_ + (to_next ? 1 : dimensions_.ranks - 1)) % dimensions_.ranks;
    if (instruction.peer != peer) refuse(fmt::format("the other side is rank {}", peer));
  }

  void check_turn(const Instruction& instruction) {
    if (stepped_) refuse("comes after optimizer_step");
    Chunk& chunk = chunks_[static_cast<std::size_t>(instruction.chunk)];
    switch (instruction.operation) {
      case Operation::reduce_shared: return check_reduce_shared();
      case Operation::reduce_gradients: return check_reduce_gradients(chunk);
      case Operation::optimizer_step: return check_optimizer_step();
      default: return check_micro_batch(instruction, chunk);
    }
  }

  void check_micro_batch(const Instruction& instruction, Chunk& chunk) {
    const Operation operation = instruction.operation;
    MicroBatch& micro_batch = chunk.micro_batches[static_cast<std::size_t>(instruction.micro_batch)];
    if (micro_batch.done[index_of(operation)]) refuse("is repeated");
    for (const Operation before : prerequisites(operation))
      if (needed(before, instruction.chunk) && !micro_batch.done[index_of(before)])
        refuse(fmt::format("{} of this micro-batch must come before", name_of(before)));
    // Gradients are summed in the order of the micro-batches under every schedule, so that results agree.
    int& next = chunk.next[index_of(operation)];
    if (instruction.micro_batch != next) refuse(fmt::format("is out of order: micro-batch {} is due", next));
    ++next;
    micro_batch.done[index_of(operation)] = true;
    if (operation == Operation::forward) {
      peak_ = std::max(peak_, ++alive_);
      chunk.peak_slots = std::max(chunk.peak_slots, ++chunk.slots);
    }
    if (operation == Operation::backward_weight) --alive_, --chunk.slots;
  }

  // The first instruction of this kind that is still due on some chunk, or an empty text.
  std::string still_due(Operation operation) const {
    for (int c = 0; c < dimensions_.chunks; ++c) {
      const int next = chunks_[static_cast<std::size_t>(c)].next[index_of(operation)];
      if (needed(operation, c) && next < dimensions_.micro_batches)
        return fmt::format("{} m{} c{}", name_of(operation), next, c);
    }
    return {};
  }

  void check_reduce_shared() {
    if (shared_reduced_) refuse("is repeated");
    const std::string due = still_due(Operation::backward_weight);
    if (!due.empty()) refuse(fmt::format("comes before {}: the gradients are not complete", due));
    // A stage that waits in this sum cannot serve the transfer that lets another stage come to it.
    for (const Operation operation : micro_batch_operations)
      if (const std::string left = still_due(operation); !left.empty()) refuse(fmt::format("comes before {}", left));
    shared_reduced_ = true;
  }

  void check_reduce_gradients(Chunk& chunk) const {
    if (chunk.reduced) refuse("is repeated");
    const int next = chunk.next[index_of(Operation::backward_weight)];
    if (next < dimensions_.micro_batches)
      refuse(fmt::format("comes before backward_weight m{}: the gradients are not complete", next));
    // One order on all ranks, and whole gradients for the sum between stages.
    if (!shared_reduced_) refuse("comes before reduce_shared");
    chunk.reduced = true;
  }

  void check_optimizer_step() {
    const std::string due = still_due(Operation::backward_weight);
    if (!due.empty()) refuse(fmt::format("comes before {}: the gradients are not complete", due));
    if (!shared_reduced_) refuse("comes before reduce_shared: the gradients are not complete");
    for (std::size_t c = 0; c < chunks_.size(); ++c)
      if (!chunks_[c].reduced)
        refuse(fmt::format("comes before reduce_gradients c{}: the gradients are not complete", c));
    stepped_ = true;
  }

  void check_end() const {
    for (const Operation operation : micro_batch_operations) {
      const std::string due = still_due(operation);
      if (due.empty()) continue;
      refuse_end(due + " is missing" + (operation == Operation::backward_weight ? ": its stash is never freed" : ""));
    }
    if (!stepped_) refuse_end("optimizer_step is missing");
  }

  Dimensions dimensions_;
  int rank_;
  const InstructionList& list_;
  std::vector<Chunk> chunks_;
  std::size_t position_ = 0;
  int alive_ = 0;
  int peak_ = 0;
  bool shared_reduced_ = false;
  bool stepped_ = false;
};

double pass_cost(const ScheduleCosts& costs, int stage, Operation operation) {
  const PassCosts pass = costs.stages.empty() ? PassCosts{} : costs.stages[static_cast<std::size_t>(stage)];
  switch (operation) {
    case Operation::forward: return pass.forward;
    case Operation::backward_input: return pass.backward_input;
    case Operation::backward_weight: return pass.backward_weight;
    default: return 0.0;
  }
}

// Lets all ranks run until each has ended its list. A rank that reaches a group of transfers posts all of them and
// stays until every transfer has met its counterpart. That is the first unmet transfer, in order, between the same two
// ranks.
class Simulation {
 public:
  Simulation(const Dimensions& dimensions, const std::vector<InstructionList>& lists, const ScheduleCosts& costs)
      : dimensions_(dimensions), lists_(lists), costs_(costs), ranks_(lists.size()) {}

  void run(ScheduleReport& report) {
    for (int rank = 0; rank < dimensions_.ranks; ++rank) ready_.push_back(rank);
    while (!ready_.empty()) {
      const int rank = ready_.front();
      ready_.pop_front();
      advance(rank);
    }
    refuse_deadlock();
    for (const Rank& rank : ranks_) report.makespan = std::max(report.makespan, rank.clock);
  }

 private:
  struct Posted {
    std::size_t position;
    bool met = false;
  };
  struct Rank {
    std::size_t position = 0;
    double clock = 0.0;
    std::vector<Posted> group;  // empty unless it stands at transfers
    double group_end = 0.0;
  };

  const InstructionList& list_of(int rank) const { return lists_[static_cast<std::size_t>(rank)]; }
  Rank& state_of(int rank) { return ranks_[static_cast<std::size_t>(rank)]; }
  const Instruction& instruction_at(int rank, std::size_t position) const { return list_of(rank)[position]; }

  void advance(int rank) {
    Rank& state = state_of(rank);
    while (state.position < list_of(rank).size()) {
      const Instruction& instruction = instruction_at(rank, state.position);
      if (!is_transfer(instruction.operation)) {
        const double cost = cost_of(rank, instruction);
        state.clock += cost;
        ++state.position;
        continue;
      }
      if (state.group.empty()) {
        post_group(rank);
        meet_counterparts(rank);
      }
      if (!all_met(state)) return;
      state.clock = state.group_end;
      state.position += state.group.size();
      state.group.clear();
    }
  }

  double cost_of(int rank, const Instruction& instruction) const {
    return pass_cost(costs_, stage_of(dimensions_, rank, instruction.chunk), instruction.operation);
  }

  static bool all_met(const Rank& state) {
    return std::all_of(state.group.begin(), state.group.end(), [](const Posted& posted) { return posted.met; });
  }

  void post_group(int rank) {
    Rank& state = state_of(rank);
    std::size_t position = state.position;
    state.group.push_back({position});
    while (instruction_at(rank, position).with_next) state.group.push_back({++position});
    state.group_end = state.clock;
  }

  void meet_counterparts(int rank) {
    Rank& state = state_of(rank);
    for (Posted& mine : state.group) {
      const Instruction& instruction = instruction_at(rank, mine.position);
      const int peer = instruction.peer;
      Rank& other = state_of(peer);
      const auto theirs = std::find_if(other.group.begin(), other.group.end(), [&](const Posted& posted) {
        const Instruction& candidate = instruction_at(peer, posted.position);
        return !posted.met && candidate.peer == rank && is_send(candidate.operation) != is_send(instruction.operation);
      });
      if (theirs == other.group.end()) continue;
      check_counterparts(rank, mine.position, peer, theirs->position);
      mine.met = theirs->met = true;
      const double end = std::max(state.clock, other.clock) + costs_.transfer;
      state.group_end = std::max(state.group_end, end);
      other.group_end = std::max(other.group_end, end);
      if (all_met(other)) ready_.push_back(peer);
    }
  }

  void check_counterparts(int rank, std::size_t position, int peer, std::size_t peer_position) const {
    const Instruction& mine = instruction_at(rank, position);
    const Instruction& theirs = instruction_at(peer, peer_position);
    const int my_stage = stage_of(dimensions_, rank, mine.chunk);
    const int their_stage = stage_of(dimensions_, peer, theirs.chunk);
    const bool mine_is_earlier = is_send(mine.operation) == moves_activations(mine.operation);
    if (mine.micro_batch == theirs.micro_batch &&
        moves_activations(mine.operation) == moves_activations(theirs.operation) &&
        their_stage - my_stage == (mine_is_earlier ? 1 : -1))
      return;
    throw InternalError(fmt::format("pipeline schedule refused: {} meets {}: they do not belong together",
                                    place(rank, position, mine), place(peer, peer_position, theirs)));
  }

  void refuse_deadlock() const {
    std::vector<std::string> waiting;
    for (int rank = 0; rank < dimensions_.ranks; ++rank) {
      const Rank& state = ranks_[static_cast<std::size_t>(rank)];
      for (const Posted& posted : state.group)
        if (!posted.met) waiting.push_back(describe_wait(rank, posted.position));
    }
    if (waiting.empty()) return;
    throw InternalError(fmt::format("pipeline schedule refused: deadlock:\n  {}", join(waiting, "\n  ")));
  }

  std::string describe_wait(int rank, std::size_t position) const {
    const Instruction& instruction = instruction_at(rank, position);
    const Rank& peer = ranks_[static_cast<std::size_t>(instruction.peer)];
    const std::string there =
        peer.position == list_of(instruction.peer).size()
            ? fmt::format("rank {} has ended its list without the counterpart", instruction.peer)
            : place(instruction.peer, peer.position, instruction_at(instruction.peer, peer.position));
    return fmt::format("{} waits for {}", place(rank, position, instruction), there);
  }

  Dimensions dimensions_;
  const std::vector<InstructionList>& lists_;
  ScheduleCosts costs_;
  std::vector<Rank> ranks_;
  std::deque<int> ready_;
};

// The same when transfers overlap with passes. A list that passed the simulation above is walked with the times at
// which its inputs have arrived.
class OverlappedTiming {
 public:
  OverlappedTiming(const Dimensions& dimensions, const std::vector<InstructionList>& lists, const ScheduleCosts& costs)
      : dimensions_(dimensions), lists_(lists), costs_(costs), positions_(lists.size()), clocks_(lists.size()) {
    const auto stages = static_cast<std::size_t>(dimensions.ranks) * static_cast<std::size_t>(dimensions.chunks);
    for (auto* arrivals : {&activations_, &gradients_})
      arrivals->assign(stages, std::vector<double>(static_cast<std::size_t>(dimensions.micro_batches), unknown));
  }

  double makespan() {
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t rank = 0; rank < lists_.size(); ++rank)
        while (positions_[rank] < lists_[rank].size() && step(rank)) moved = true;
    }
    return *std::ranges::max_element(clocks_);
  }

 private:
  static constexpr double unknown = -1.0;

  // False when something that the rank's next instruction uses is not made yet.
  bool step(std::size_t rank) {
    const Instruction& instruction = lists_[rank][positions_[rank]];
    const int stage = stage_of(dimensions_, static_cast<int>(rank), instruction.chunk);
    double& clock = clocks_[rank];
    switch (instruction.operation) {
      case Operation::send_forward:
        place(activations_, stage + 1, instruction.micro_batch) = clock + costs_.transfer;
        break;
      case Operation::send_backward:
        place(gradients_, stage - 1, instruction.micro_batch) = clock + costs_.transfer;
        break;
      case Operation::forward:
        if (stage > 0 && !wait(clock, place(activations_, stage, instruction.micro_batch))) return false;
        break;
      case Operation::backward_input:
        if (stage + 1 < dimensions_.ranks * dimensions_.chunks &&
            !wait(clock, place(gradients_, stage, instruction.micro_batch)))
          return false;
        break;
      default: break;
    }
    clock += pass_cost(costs_, stage, instruction.operation);
    ++positions_[rank];
    return true;
  }

  static bool wait(double& clock, double arrival) {
    if (arrival == unknown) return false;
    clock = std::max(clock, arrival);
    return true;
  }
  static double& place(std::vector<std::vector<double>>& arrivals, int stage, int micro_batch) {
    return arrivals[static_cast<std::size_t>(stage)][static_cast<std::size_t>(micro_batch)];
  }

  Dimensions dimensions_;
  const std::vector<InstructionList>& lists_;
  ScheduleCosts costs_;
  std::vector<std::size_t> positions_;
  std::vector<double> clocks_;
  std::vector<std::vector<double>> activations_, gradients_;  // when they arrive, by receiving stage and micro-batch
};

double work_of(const Dimensions& dimensions, const std::vector<InstructionList>& lists, const ScheduleCosts& costs) {
  double work = 0.0;
  for (int rank = 0; rank < dimensions.ranks; ++rank)
    for (const Instruction& instruction : lists[static_cast<std::size_t>(rank)])
      work += pass_cost(costs, stage_of(dimensions, rank, instruction.chunk), instruction.operation);
  return work;
}

}  // namespace

ScheduleReport check_schedule(const std::vector<InstructionList>& lists, int micro_batches, int chunks,
                              const ScheduleCosts& costs) {
  const Dimensions dimensions{static_cast<int>(lists.size()), micro_batches, chunks};
  FULMEN_CHECK(dimensions.ranks >= 1 && micro_batches >= 1 && chunks >= 1,
               "a schedule of {} ranks, {} micro-batches and {} chunks", dimensions.ranks, micro_batches, chunks);
  FULMEN_CHECK(costs.stages.empty() || costs.stages.size() == lists.size() * static_cast<std::size_t>(chunks),
               "costs of {} stages for {} ranks of {} chunks", costs.stages.size(), lists.size(), chunks);
  FULMEN_CHECK(dimensions.ranks > 1 || chunks == 1, "{} model chunks on a single pipeline rank", chunks);
  ScheduleReport report;
  for (int rank = 0; rank < dimensions.ranks; ++rank)
    ListChecker(dimensions, rank, lists[static_cast<std::size_t>(rank)]).check(report);
  Simulation(dimensions, lists, costs).run(report);
  if (costs.overlap) report.makespan = OverlappedTiming(dimensions, lists, costs).makespan();
  if (report.makespan > 0.0)
    report.bubble = 1.0 - work_of(dimensions, lists, costs) / (report.makespan * dimensions.ranks);
  return report;
}

}  // namespace fulmen
