// The instructions of pipeline schedules, in words.
#include "parallel/pipeline_instructions.h"

#include "framework/error.h"

namespace fulmen {
namespace {

bool is_receive(Operation operation) {
  return operation == Operation::receive_forward || operation == Operation::receive_backward;
}

}  // namespace

std::string_view name_of(Operation operation) {
  switch (operation) {
    case Operation::forward: return "forward";
    case Operation::backward_input: return "backward_input";
    case Operation::backward_weight: return "backward_weight";
    case Operation::send_forward: return "send_forward";
    case Operation::receive_forward: return "receive_forward";
    case Operation::send_backward: return "send_backward";
    case Operation::receive_backward: return "receive_backward";
    case Operation::reduce_gradients: return "reduce_gradients";
    case Operation::reduce_shared: return "reduce_shared";
    case Operation::optimizer_step: return "optimizer_step";
  }
  throw InternalError("unknown pipeline operation");
}

bool is_transfer(Operation operation) {
  return operation == Operation::send_forward || operation == Operation::send_backward || is_receive(operation);
}

std::string to_string(const Instruction& instruction) {
  std::string text(name_of(instruction.operation));
  if (instruction.micro_batch >= 0) text += fmt::format(" m{}", instruction.micro_batch);
  if (instruction.operation != Operation::reduce_shared && instruction.operation != Operation::optimizer_step)
    text += fmt::format(" c{}", instruction.chunk);
  if (is_transfer(instruction.operation))
    text += fmt::format(" {} {}", is_receive(instruction.operation) ? "<-" : "->", instruction.peer);
  if (instruction.with_next) text += " with next";
  return text;
}

}  // namespace fulmen
