// The checker against broken schedules: each position of each list broken in each way, and random changes judged by an
// oracle written in another manner.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <random>

#include "framework/error.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/schedule_checker.h"

namespace fulmen {
namespace {

using Lists = std::vector<InstructionList>;

constexpr ScheduleKind kinds[] = {ScheduleKind::gpipe, ScheduleKind::one_forward_one_backward};

std::string refusal(const Lists& lists, int micro_batches, int chunks = 1) {
  try {
    check_schedule(lists, micro_batches, chunks);
  } catch (const InternalError& error) {
    return error.what();
  }
  return {};
}

bool names_a_rank(const std::string& message) {
  return message.find("pipeline schedule refused") != std::string::npos && message.find("rank ") != std::string::npos;
}

// f(lists, micro-batches, rank, position) for every instruction of both schedules in many shapes.
void for_every_instruction(const std::function<void(const Lists&, int, std::size_t, std::size_t)>& f) {
  for (const ScheduleKind kind : kinds)
    for (int stages = 1; stages <= 5; ++stages)
      for (int micro_batches = 1; micro_batches <= 7; ++micro_batches) {
        const Lists lists = make_schedule(kind, stages, micro_batches);
        SCOPED_TRACE(fmt::format("{}, {} stages, {} micro-batches", name_of(kind), stages, micro_batches));
        for (std::size_t rank = 0; rank < lists.size(); ++rank)
          for (std::size_t position = 0; position < lists[rank].size(); ++position)
            f(lists, micro_batches, rank, position);
      }
}

void expect_refused(const Lists& lists, int micro_batches, std::size_t rank, const Instruction& changed) {
  const std::string message = refusal(lists, micro_batches);
  EXPECT_TRUE(names_a_rank(message)) << "changed on rank " << rank << ": " << to_string(changed) << "\n" << message;
}

TEST(ScheduleChecker, RefusesEveryDroppedInstruction) {
  for_every_instruction([](const Lists& lists, int micro_batches, std::size_t rank, std::size_t position) {
    Lists broken = lists;
    broken[rank].erase(broken[rank].begin() + static_cast<std::ptrdiff_t>(position));
    expect_refused(broken, micro_batches, rank, lists[rank][position]);
  });
}

TEST(ScheduleChecker, RefusesEveryRepeatedInstruction) {
  for_every_instruction([](const Lists& lists, int micro_batches, std::size_t rank, std::size_t position) {
    const Instruction instruction = lists[rank][position];
    for (std::size_t at = position; at <= lists[rank].size(); ++at) {
      Lists broken = lists;
      broken[rank].insert(broken[rank].begin() + static_cast<std::ptrdiff_t>(at), instruction);
      expect_refused(broken, micro_batches, rank, instruction);
    }
  });
}

TEST(ScheduleChecker, RefusesEveryOtherMicroBatch) {
  for_every_instruction([](const Lists& lists, int micro_batches, std::size_t rank, std::size_t position) {
    for (int other = -1; other <= micro_batches; ++other) {
      if (other == lists[rank][position].micro_batch) continue;
      Lists broken = lists;
      broken[rank][position].micro_batch = other;
      expect_refused(broken, micro_batches, rank, lists[rank][position]);
    }
  });
}

TEST(ScheduleChecker, RefusesEveryOtherPeerAndChunk) {
  for_every_instruction([](const Lists& lists, int micro_batches, std::size_t rank, std::size_t position) {
    for (int other = -2; other <= static_cast<int>(lists.size()); ++other) {
      if (other == lists[rank][position].peer) continue;
      Lists broken = lists;
      broken[rank][position].peer = other;
      expect_refused(broken, micro_batches, rank, lists[rank][position]);
    }
    Lists broken = lists;
    broken[rank][position].chunk = 1;
    expect_refused(broken, micro_batches, rank, lists[rank][position]);
  });
}

TEST(ScheduleChecker, RefusesTransfersOfOneKindSwapped) {
  for_every_instruction([](const Lists& lists, int micro_batches, std::size_t rank, std::size_t position) {
    const Instruction& instruction = lists[rank][position];
    if (!is_transfer(instruction.operation)) return;
    for (std::size_t other = position + 1; other < lists[rank].size(); ++other) {
      if (lists[rank][other].operation != instruction.operation) continue;
      Lists broken = lists;
      std::swap(broken[rank][position].micro_batch, broken[rank][other].micro_batch);
      expect_refused(broken, micro_batches, rank, instruction);
    }
  });
}

TEST(ScheduleChecker, RefusesTheStepBeforeTheLastBackward) {
  for_every_instruction([](const Lists& lists, int micro_batches, std::size_t rank, std::size_t position) {
    const Operation operation = lists[rank][position].operation;
    if (operation == Operation::optimizer_step) return;
    Lists broken = lists;
    const Instruction step = broken[rank].back();
    broken[rank].pop_back();
    if (position > 0 && broken[rank][position - 1].with_next) return;  // it would split a group: another test's matter
    broken[rank].insert(broken[rank].begin() + static_cast<std::ptrdiff_t>(position), step);
    expect_refused(broken, micro_batches, rank, step);
    const std::string message = refusal(broken, micro_batches);
    EXPECT_NE(message.find(fmt::format("rank {}, instruction {} (optimizer_step)", rank, position)), std::string::npos)
        << message;
    EXPECT_NE(message.find("gradients are not complete"), std::string::npos) << message;
  });
}

TEST(ScheduleChecker, FindsTheDeadlockOfUngroupedExchanges) {
  for (int stages = 2; stages <= 6; ++stages) {
    for (int micro_batches = 2; micro_batches <= 9; ++micro_batches) {
      Lists lists = make_schedule(ScheduleKind::one_forward_one_backward, stages, micro_batches);
      for (InstructionList& list : lists)
        for (Instruction& instruction : list) instruction.with_next = false;
      const std::string message = refusal(lists, micro_batches);
      EXPECT_NE(message.find("deadlock"), std::string::npos) << message;
    }
  }
}

TEST(ScheduleChecker, DeadlockMessageSaysWhatEachRankWaitsFor) {
  Lists lists = make_schedule(ScheduleKind::one_forward_one_backward, 2, 2);
  for (InstructionList& list : lists)
    for (Instruction& instruction : list) instruction.with_next = false;
  const std::string message = refusal(lists, 2);
  EXPECT_NE(message.find("rank 0, instruction 3 (send_forward m1 c0 -> 1) waits for rank 1, instruction 3 "
                         "(send_backward m0 c0 -> 0)"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("rank 1, instruction 3 (send_backward m0 c0 -> 0) waits for rank 0, instruction 3 "
                         "(send_forward m1 c0 -> 1)"),
            std::string::npos)
      << message;
}

// While one side is grouped, it takes part in both of the other side's transfers, whichever comes first.
TEST(ScheduleChecker, AllowsOneSideUngrouped) {
  Lists lists = make_schedule(ScheduleKind::one_forward_one_backward, 4, 6);
  for (Instruction& instruction : lists[1]) instruction.with_next = false;
  for (Instruction& instruction : lists[3]) instruction.with_next = false;
  EXPECT_EQ(refusal(lists, 6), "");
}

TEST(ScheduleChecker, RefusesAGroupWithoutAnEnd) {
  Lists lists = make_schedule(ScheduleKind::gpipe, 2, 1);
  const auto send = std::find_if(lists[0].begin(), lists[0].end(), [](const Instruction& instruction) {
    return instruction.operation == Operation::send_forward;
  });
  const auto receive = send + 1;
  ASSERT_TRUE(is_transfer(receive->operation));
  receive->with_next = true;
  EXPECT_NE(refusal(lists, 1).find("grouped with the next instruction"), std::string::npos);
}

// Two chunks on each of two ranks, all forwards before all backwards: the last rank's first chunk feeds the first
// rank's second.
TEST(ScheduleChecker, FollowsChunksAroundThePipeline) {
  Lists lists(2);
  const auto add = [&](std::size_t rank, Operation operation, int chunk) {
    const bool transfer = is_transfer(operation);
    lists[rank].push_back({operation, 0, chunk, transfer ? 1 - static_cast<int>(rank) : -1});
  };
  add(0, Operation::forward, 0);
  add(0, Operation::send_forward, 0);
  add(0, Operation::receive_forward, 1);
  add(0, Operation::forward, 1);
  add(0, Operation::send_forward, 1);
  add(0, Operation::receive_backward, 1);
  add(0, Operation::backward_input, 1);
  add(0, Operation::send_backward, 1);
  add(0, Operation::backward_weight, 1);
  add(0, Operation::receive_backward, 0);
  add(0, Operation::backward_input, 0);
  add(0, Operation::backward_weight, 0);
  add(1, Operation::receive_forward, 0);
  add(1, Operation::forward, 0);
  add(1, Operation::send_forward, 0);
  add(1, Operation::receive_forward, 1);
  add(1, Operation::forward, 1);
  add(1, Operation::backward_input, 1);
  add(1, Operation::send_backward, 1);
  add(1, Operation::backward_weight, 1);
  add(1, Operation::receive_backward, 0);
  add(1, Operation::backward_input, 0);
  add(1, Operation::send_backward, 0);
  add(1, Operation::backward_weight, 0);
  for (InstructionList& list : lists) {
    list.push_back({.operation = Operation::reduce_shared});
    list.push_back({.operation = Operation::reduce_gradients, .chunk = 0});
    list.push_back({.operation = Operation::reduce_gradients, .chunk = 1});
    list.push_back({.operation = Operation::optimizer_step});
  }
  EXPECT_EQ(check_schedule(lists, 1, 2).peak_stash, (std::vector<int>{2, 2}));
  for (std::size_t rank = 0; rank < 2; ++rank)
    for (std::size_t position = 0; position < lists[rank].size(); ++position) {
      Lists broken = lists;
      broken[rank].erase(broken[rank].begin() + static_cast<std::ptrdiff_t>(position));
      EXPECT_TRUE(names_a_rank(refusal(broken, 1, 2))) << rank << " " << position;
    }
  Lists crossed = lists;  // rank 1 takes the second chunk's input first
  std::swap(crossed[1][0].chunk, crossed[1][3].chunk);
  EXPECT_TRUE(names_a_rank(refusal(crossed, 1, 2)));
}

// Where each instruction of a list stands: position of (operation, micro-batch), or nothing when it is not there once.
std::map<std::pair<Operation, int>, int> positions_of(const InstructionList& list, bool& repeated) {
  std::map<std::pair<Operation, int>, int> positions;
  for (std::size_t i = 0; i < list.size(); ++i)
    if (!positions.emplace(std::pair{list[i].operation, list[i].micro_batch}, static_cast<int>(i)).second)
      repeated = true;
  return positions;
}

bool list_is_sound(const InstructionList& list, bool first, bool last, int micro_batches) {
  bool repeated = false;
  auto at = positions_of(list, repeated);
  std::vector<std::vector<Operation>> chains = {
      {Operation::forward, Operation::backward_input, Operation::backward_weight}};
  if (!first) chains.push_back({Operation::receive_forward, Operation::forward});
  if (!first) chains.push_back({Operation::backward_input, Operation::send_backward});
  if (!last) chains.push_back({Operation::forward, Operation::send_forward});
  if (!last) chains.push_back({Operation::receive_backward, Operation::backward_input});
  const std::size_t per_micro_batch = 3 + (first ? 0 : 2) + (last ? 0 : 2);
  if (repeated || list.size() != per_micro_batch * static_cast<std::size_t>(micro_batches) + 3) return false;
  const int end = static_cast<int>(list.size());
  const auto is_at = [&](Operation operation, int micro_batch, int position) {
    const auto found = at.find({operation, micro_batch});
    return found != at.end() && found->second == position;
  };
  if (!is_at(Operation::reduce_shared, -1, end - 3) || !is_at(Operation::reduce_gradients, -1, end - 2) ||
      !is_at(Operation::optimizer_step, -1, end - 1))
    return false;
  for (const auto& chain : chains)
    for (int m = 0; m < micro_batches; ++m)
      for (std::size_t i = 0; i < chain.size(); ++i) {
        if (!at.contains({chain[i], m})) return false;
        if (i > 0 && at[{chain[i - 1], m}] > at[{chain[i], m}]) return false;
        if (m > 0 && at[{chain[i], m - 1}] > at[{chain[i], m}]) return false;
      }
  return true;
}

// Rounds of matching over all pairs of ranks until nothing moves; every receive must get what it names.
bool transfers_complete(const Lists& lists) {
  const std::size_t ranks = lists.size();
  std::vector<std::size_t> next(ranks, 0);
  std::vector<std::vector<bool>> met(ranks);
  for (std::size_t r = 0; r < ranks; ++r) met[r].assign(lists[r].size(), false);
  const auto is_send = [](const Instruction& instruction) {
    return instruction.operation == Operation::send_forward || instruction.operation == Operation::send_backward;
  };
  const auto group_end = [&](std::size_t r) {
    std::size_t end = next[r];
    while (lists[r][end].with_next) ++end;
    return end + 1;
  };
  const auto first_open = [&](std::size_t r, std::size_t peer, bool sends) -> const Instruction* {
    if (next[r] == lists[r].size()) return nullptr;
    for (std::size_t i = next[r]; i < group_end(r); ++i)
      if (!met[r][i] && static_cast<std::size_t>(lists[r][i].peer) == peer && is_send(lists[r][i]) == sends)
        return &lists[r][i];
    return nullptr;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (std::size_t r = 0; r < ranks; ++r) {
      while (next[r] < lists[r].size()) {
        if (!is_transfer(lists[r][next[r]].operation)) {
          ++next[r];
        } else {
          const auto begin = met[r].begin() + static_cast<std::ptrdiff_t>(next[r]);
          const auto end = met[r].begin() + static_cast<std::ptrdiff_t>(group_end(r));
          if (!std::all_of(begin, end, [](bool done) { return done; })) break;
          next[r] = group_end(r);
        }
        moved = true;
      }
    }
    for (std::size_t sender = 0; sender < ranks; ++sender)
      for (std::size_t receiver = 0; receiver < ranks; ++receiver) {
        const Instruction* send = first_open(sender, receiver, true);
        const Instruction* receive = first_open(receiver, sender, false);
        if (send == nullptr || receive == nullptr) continue;
        const bool forward_pair =
            send->operation == Operation::send_forward && receive->operation == Operation::receive_forward;
        const bool backward_pair =
            send->operation == Operation::send_backward && receive->operation == Operation::receive_backward;
        if (send->micro_batch != receive->micro_batch || !(forward_pair || backward_pair)) return false;
        met[sender][static_cast<std::size_t>(send - lists[sender].data())] = true;
        met[receiver][static_cast<std::size_t>(receive - lists[receiver].data())] = true;
        moved = true;
      }
  }
  for (std::size_t r = 0; r < ranks; ++r)
    if (next[r] != lists[r].size()) return false;
  return true;
}

bool oracle_accepts(const Lists& lists, int micro_batches) {
  for (std::size_t r = 0; r < lists.size(); ++r) {
    if (!list_is_sound(lists[r], r == 0, r + 1 == lists.size(), micro_batches)) return false;
    for (std::size_t i = 0; i < lists[r].size(); ++i)
      if (lists[r][i].with_next && !(is_transfer(lists[r][i].operation) && is_transfer(lists[r][i + 1].operation)))
        return false;
  }
  return transfers_complete(lists);
}

// Moves an instruction elsewhere, or changes how transfers are grouped: changes that may well leave a sound schedule.
void change_at_random(Lists& lists, std::mt19937& generator) {
  const auto below = [&](std::size_t bound) {
    return std::uniform_int_distribution<std::size_t>(0, bound - 1)(generator);
  };
  InstructionList& list = lists[below(lists.size())];
  const std::size_t from = below(list.size());
  if (is_transfer(list[from].operation) && below(3) == 0) {
    list[from].with_next = !list[from].with_next && is_transfer(list[from + 1].operation);
    return;
  }
  const auto distance = static_cast<std::ptrdiff_t>(below(7)) - 3;
  const auto last = static_cast<std::ptrdiff_t>(list.size()) - 1;
  const std::ptrdiff_t to = std::clamp(static_cast<std::ptrdiff_t>(from) + distance, std::ptrdiff_t{0}, last);
  const Instruction moved = list[from];
  list.erase(list.begin() + static_cast<std::ptrdiff_t>(from));
  list.insert(list.begin() + to, moved);
}

TEST(ScheduleChecker, AgreesWithTheOracleOnRandomChanges) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937 generator(seed);
  int accepted = 0, refused = 0;
  for (int round = 0; round < 20000; ++round) {
    const int stages = std::uniform_int_distribution<int>(1, 4)(generator);
    const int micro_batches = std::uniform_int_distribution<int>(1, 5)(generator);
    Lists lists = make_schedule(kinds[generator() % 2], stages, micro_batches);
    const int changes = std::uniform_int_distribution<int>(0, 6)(generator);
    for (int i = 0; i < changes; ++i) change_at_random(lists, generator);
    const std::string message = refusal(lists, micro_batches);
    ASSERT_EQ(message.empty(), oracle_accepts(lists, micro_batches)) << "round " << round << ": " << message;
    ++(message.empty() ? accepted : refused);
  }
  EXPECT_GT(accepted, 2000);
  EXPECT_GT(refused, 2000);
}

}  // namespace
}  // namespace fulmen
