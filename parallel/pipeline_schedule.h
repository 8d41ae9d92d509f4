// A pipeline schedule is data: for each pipeline rank a list of instructions. The executor runs it, the checker
// simulates all ranks together before anything starts, the planner times it, the timeline draws it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen {

enum class Operation : std::uint8_t {
  forward,          // of micro-batch m on model chunk c: keeps a stash
  backward_input,   // gradients of activations, gates, norms and theta
  backward_weight,  // matrix products only; frees the stash
  recompute,        // restores a dropped stash
  send_forward,     // the chunk's output to the next stage
  receive_forward,
  send_backward,  // the gradient of the chunk's input to the previous stage
  receive_backward,
  gather,            // make a chunk's weights whole (ZeRO-3)
  release,           // and let them go
  reduce_gradients,  // over data and sequence ranks
  reduce_shared,     // between stages that share a parameter
  optimizer_step,
};
std::string_view name_of(Operation operation);
bool is_transfer(Operation operation);

struct Instruction {
  Operation operation = Operation::forward;
  int micro_batch = -1;    // -1 where it has no meaning
  int chunk = 0;           // model chunk on this pipeline rank
  int peer = -1;           // pipeline coordinate of the other side, for transfers
  bool with_next = false;  // a transfer that proceeds together with the next one, as one grouped exchange
  friend bool operator==(const Instruction&, const Instruction&) = default;
};
std::string to_string(const Instruction& instruction);  // "send_forward m3 c0 -> 1"

using InstructionList = std::vector<Instruction>;

enum class ScheduleKind : std::uint8_t { gpipe, one_forward_one_backward, interleaved, zero_bubble };
std::string_view name_of(
    ScheduleKind kind);  // "gpipe", "1f1b", "interleaved", "zero-bubble", as configurations spell them
ScheduleKind parse_schedule_kind(std::string_view name);

// Relative durations of a stage's passes, for the simulated bubble.
struct PassCosts {
  double forward = 1.0;
  double backward_input = 1.0;
  double backward_weight = 1.0;
};

struct ScheduleCosts {
  std::vector<PassCosts> stages;  // by stage of the whole model; empty: all alike
  double transfer = 0.0;
  bool overlap = false;  // transfers go on beside passes: a rank waits only for what it is about to use
};

// One list per pipeline rank, of one optimisation step: all micro-batches, then reduce_shared, reduce_gradients and
// optimizer_step. Works for any number of ranks and micro-batches >= 1. With `chunks` model chunks per rank, chunk c of
// rank r is stage c * ranks + r; throws UserError where the kind, or a single rank, takes no chunks.
//   gpipe: all forwards, then all backwards.
//   1f1b: rank r of p warms up with min(p - 1 - r, m) forwards, then alternates (PipeDream-Flush, arXiv 2006.09503).
//   interleaved: 1f1b over chunks, which shortens the bubble by as many times (arXiv 2104.04473); any m, p need not
//   divide it. zero-bubble: as 1f1b (interleaved, with chunks), but weight gradients wait for idle time, as long as no
//   rank keeps more
//     stashes than rank 0 needs (ZB-H1, arXiv 2401.10241).
// The last two are made for passes of these costs; with them zero-bubble never takes longer than 1f1b, or interleaved
// of as many chunks. All ranks must make the lists of the same costs.
std::vector<InstructionList> make_schedule(ScheduleKind kind, int ranks, int micro_batches, int chunks = 1,
                                           const ScheduleCosts& costs = {});

struct ScheduleReport {
  std::vector<int> peak_stash;  // per pipeline rank: stashes (micro-batch, chunk) alive at once, at most
  std::vector<std::vector<int>>
      peak_slots;         // per rank and chunk: micro-batches between forward and backward_weight, at most
  double makespan = 0.0;  // simulated time of the whole step
  double bubble = 0.0;    // idle share of the ranks' total time
};

// Simulates all ranks together under rendezvous semantics: a send completes only when its receive is reached, and both
// sides of a group proceed together. Throws InternalError naming the ranks and instructions when something is wrong: a
// deadlock, a transfer without its counterpart or with another micro-batch, a forward or backward missing, repeated or
// out of order, a step before the gradients are complete, a stash never freed.
ScheduleReport check_schedule(const std::vector<InstructionList>& lists, int micro_batches, int chunks = 1,
                              const ScheduleCosts& costs = {});

}  // namespace fulmen
