// Shared by all communicators: the life of a pending operation and the collectives on host values.
#include "parallel/communicator.h"

#include <exception>

namespace fulmen {

Pending& Pending::operator=(Pending&& other) {
  if (this == &other) return *this;
  wait();
  operation_ = std::move(other.operation_);
  return *this;
}

Pending::~Pending() {
  // While an exception unwinds the job is about to end, and the other ranks may never come.
  if (std::uncaught_exceptions() > 0) return;
  wait();
}

void Pending::wait(Stream stream) {
  if (!operation_) return;
  const std::unique_ptr<Operation> operation = std::move(operation_);
  operation->wait(stream);
}

double Communicator::all_reduce(double value, ReduceOp op) {
  all_reduce(Tensor(&value, DType::fp64, {1}), op, Stream{});
  return value;
}

std::int64_t Communicator::all_reduce(std::int64_t value, ReduceOp op) {
  all_reduce(Tensor(&value, DType::int64, {1}), op, Stream{});
  return value;
}

std::string Communicator::broadcast_text(const std::string& text, int root) {
  auto length = static_cast<std::int64_t>(text.size());
  broadcast(Tensor(&length, DType::int64, {1}), root, Stream{});
  std::string result = rank() == root ? text : std::string(static_cast<std::size_t>(length), '\0');
  broadcast(Tensor(result.data(), DType::uint8, {length}), root, Stream{});
  return result;
}

}  // namespace fulmen
