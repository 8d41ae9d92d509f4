// Checks of collective arguments and the transfers of a rank to itself.
#include "parallel/transfer_checks.h"

#include <cstring>

namespace fulmen {
namespace {

std::string described(Device device) {
  return device.kind == DeviceKind::cpu ? "host memory" : fmt::format("memory of GPU {}", device.index);
}

}  // namespace

void check_operand(const Tensor& tensor, const char* operation, Device device) {
  FULMEN_CHECK(tensor.device() == device, "{} of {}: expected {}", operation, tensor.describe(), described(device));
  FULMEN_CHECK(tensor.is_contiguous(), "{} of {}: not contiguous", operation, tensor.describe());
}

void check_reduce_scatter(const Tensor& input, const Tensor& output, int ranks, Device device) {
  check_operand(input, "reduce_scatter", device);
  check_operand(output, "reduce_scatter", device);
  FULMEN_CHECK(input.dtype() == output.dtype() && input.elements() == ranks * output.elements(),
               "reduce_scatter over {} ranks: {} has not {} parts of {}", ranks, input.describe(), ranks,
               output.describe());
}

void check_all_gather(const Tensor& input, const Tensor& output, int ranks, Device device) {
  check_operand(input, "all_gather", device);
  check_operand(output, "all_gather", device);
  FULMEN_CHECK(input.dtype() == output.dtype() && output.elements() == ranks * input.elements(),
               "all_gather over {} ranks: {} has not {} parts of {}", ranks, output.describe(), ranks,
               input.describe());
}

void check_root(int root, int ranks) {
  FULMEN_CHECK(0 <= root && root < ranks, "root {} of a communicator of {} ranks", root, ranks);
}

void check_transfers(std::span<const Transfer> transfers, int ranks, Device device) {
  for (const Transfer& transfer : transfers) {
    check_operand(transfer.tensor, "exchange", device);
    FULMEN_CHECK(0 <= transfer.peer && transfer.peer < ranks, "exchange with rank {} of {}", transfer.peer, ranks);
  }
}

void check_stream(Stream stream, Device device) {
  FULMEN_CHECK(stream.device == device, "a stream of {} for tensors in {}", described(stream.device),
               described(device));
}

char* part_of(const Tensor& tensor, std::int64_t part_elements, int index) {
  const auto offset = static_cast<std::size_t>(part_elements * index) * size_of(tensor.dtype());
  return static_cast<char*>(tensor.data()) + offset;
}

void copy_bytes(const Tensor& from, const Tensor& to) {
  if (from.bytes() == 0 || from.data() == to.data()) return;
  std::memmove(to.data(), from.data(), from.bytes());
}

std::vector<std::pair<Tensor, Tensor>> transfers_to_self(std::span<const Transfer> transfers, int self) {
  std::vector<Tensor> sends, receives;
  for (const Transfer& transfer : transfers) {
    if (transfer.peer != self) continue;
    (transfer.direction == Transfer::Direction::send ? sends : receives).push_back(transfer.tensor);
  }
  FULMEN_CHECK(sends.size() == receives.size(), "exchange of rank {} with itself: {} sends and {} receives", self,
               sends.size(), receives.size());
  std::vector<std::pair<Tensor, Tensor>> pairs;
  for (std::size_t i = 0; i < sends.size(); ++i) {
    FULMEN_CHECK(sends[i].dtype() == receives[i].dtype() && sends[i].elements() == receives[i].elements(),
                 "exchange of rank {} with itself: {} into {}", self, sends[i].describe(), receives[i].describe());
    pairs.emplace_back(sends[i], receives[i]);
  }
  return pairs;
}

void copy_to_self(std::span<const Transfer> transfers, int self) {
  for (const auto& [from, to] : transfers_to_self(transfers, self)) copy_bytes(from, to);
}

}  // namespace fulmen
