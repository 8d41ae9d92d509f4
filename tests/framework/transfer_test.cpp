// Copies to a device and back.
#include "framework/transfer.h"

#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

TEST(Transfer, RoundTripOnTheCpu) {
  MemoryLedger ledger;
  const Execution execution{Device::cpu(), {}, nullptr, &ledger};
  const OwnedTensor tensor(Device::cpu(), DType::fp64, {3, 5}, MemoryKind::data, ledger);
  std::vector<double> sent(15), received(15, std::numeric_limits<double>::quiet_NaN());
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = 0.5 * static_cast<double>(i);
  copy_to_device(execution, sent.data(), tensor);
  copy_to_host(execution, tensor, received.data());
  EXPECT_EQ(sent, received);
  EXPECT_THROW(copy_to_host(execution, tensor.view().slice(1, 0, 2), received.data()), InternalError);
}

}  // namespace
}  // namespace fulmen
