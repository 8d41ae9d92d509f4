// Checks of collective arguments and the transfers of a rank to itself.
#include "parallel/transfer_checks.h"

#include <cstring>

namespace fulmen {

void check_operand(const Tensor& tensor, const char* operation) {
  FULMEN_CHECK(tensor.device().kind == DeviceKind::cpu, "{} of {}: this communicator moves host memory only", operation,
               tensor.describe());
  FULMEN_CHECK(tensor.is_contiguous(), "{} of {}: not contiguous", operation, tensor.describe());
}

void check_reduce_scatter(const Tensor& input, const Tensor& output, int ranks) {
  check_operand(input, "reduce_scatter");
  check_operand(output, "reduce_scatter");
  FULMEN_CHECK(input.dtype() == output.dtype() && input.elements() == ranks * output.elements(),
               "reduce_scatter over {} ranks: {} has not {} parts of {}", ranks, input.describe(), ranks,
               output.describe());
}

void check_all_gather(const Tensor& input, const Tensor& output, int ranks) {
  check_operand(input, "all_gather");
  check_operand(output, "all_gather");
  FULMEN_CHECK(input.dtype() == output.dtype() && output.elements() == ranks * input.elements(),
               "all_gather over {} ranks: {} has not {} parts of {}", ranks, output.describe(), ranks,
               input.describe());
}

void check_root(int root, int ranks) {
  FULMEN_CHECK(0 <= root && root < ranks, "root {} of a communicator of {} ranks", root, ranks);
}

void check_transfers(std::span<const Transfer> transfers, int ranks) {
  for (const Transfer& transfer : transfers) {
    check_operand(transfer.tensor, "exchange");
    FULMEN_CHECK(0 <= transfer.peer && transfer.peer < ranks, "exchange with rank {} of {}", transfer.peer, ranks);
  }
}

char* part_of(const Tensor& tensor, std::int64_t part_elements, int index) {
  const auto offset = static_cast<std::size_t>(part_elements * index) * size_of(tensor.dtype());
  return static_cast<char*>(tensor.data()) + offset;
}

void copy_bytes(const Tensor& from, const Tensor& to) {
  if (from.bytes() == 0 || from.data() == to.data()) return;
  std::memmove(to.data(), from.data(), from.bytes());
}

void copy_to_self(std::span<const Transfer> transfers, int self) {
  std::vector<const Transfer*> sends, receives;
  for (const Transfer& transfer : transfers) {
    if (transfer.peer != self) continue;
    (transfer.direction == Transfer::Direction::send ? sends : receives).push_back(&transfer);
  }
  FULMEN_CHECK(sends.size() == receives.size(), "exchange of rank {} with itself: {} sends and {} receives", self,
               sends.size(), receives.size());
  for (std::size_t i = 0; i < sends.size(); ++i) {
    const Tensor& from = sends[i]->tensor;
    const Tensor& to = receives[i]->tensor;
    FULMEN_CHECK(from.dtype() == to.dtype() && from.elements() == to.elements(),
                 "exchange of rank {} with itself: {} into {}", self, from.describe(), to.describe());
    copy_bytes(from, to);
  }
}

}  // namespace fulmen
