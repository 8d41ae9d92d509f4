// A pipeline schedule is data: for each pipeline rank a list of instructions. Generators make the lists, the checker
// simulates all ranks together before anything starts, the executor runs them.
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
  send_forward,     // the chunk's output to the next stage
  receive_forward,
  send_backward,  // the gradient of the chunk's input to the previous stage
  receive_backward,
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
  bool with_next = false;  // a transfer that proceeds together with the next transfer, as one grouped exchange
  friend bool operator==(const Instruction&, const Instruction&) = default;
};
std::string to_string(const Instruction& instruction);  // "send_forward m3 c0 -> 1"

using InstructionList = std::vector<Instruction>;

// Relative durations of a stage's passes, for the simulated bubble.
struct PassCosts {
  double forward = 1.0;
  double backward_input = 1.0;
  double backward_weight = 1.0;
};

struct ScheduleCosts {
  std::vector<PassCosts> stages;  // by stage of the whole model; empty: all alike
  double transfer = 0.0;
  bool overlap = false;  // transfers overlap with passes: a rank waits only for data that it is about to use
};

}  // namespace fulmen
