// Memory that is not to be had: one message that says who holds how much, and what to do.
#include <gtest/gtest.h>

#include "framework/execution.h"
#include "tests/framework/expect_error.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

// More memory than any machine has. A GPU refuses what exceeds it; the CPU's kernel might promise any memory that it
// can address.
std::size_t too_much() { return testing::on_gpu() ? std::size_t{10} << 40 : std::size_t{1} << 60; }

TEST(OutOfMemory, IsAnsweredWithTheBreakdownAndTheRemedy) {
  const Device device = testing::test_device();
  ExecutionResources resources(device);
  const Buffer held(device, std::size_t{3} << 20, MemoryKind::optimizer, resources.ledger());
  std::vector<std::string> words = {"3.0 MiB", "train.micro_batch", "data.sequence_length", "parallel.tensor",
                                    "parallel.pipeline"};
  words.emplace_back(testing::on_gpu() ? "10.0 TiB for activations" : "1024.0 PiB for activations");
  for (std::size_t kind = 0; kind < memory_kinds; ++kind) words.emplace_back(name_of(static_cast<MemoryKind>(kind)));
  if (testing::on_gpu()) words.insert(words.end(), {"GPU memory", "are free"});
  testing_support::expect_user_error([&] { Buffer(device, too_much(), MemoryKind::activations, resources.ledger()); },
                                     words);
  EXPECT_EQ(resources.ledger().current_total(), held.bytes());
  // The device is as usable as before.
  EXPECT_NE(Buffer(device, std::size_t{1} << 20, MemoryKind::data, resources.ledger()).data(), nullptr);
}

TEST(OutOfMemory, OfTheScratchArenaIsAnsweredAlike) {
  ExecutionResources resources(testing::test_device());
  Arena& scratch = *resources.execution().scratch;
  const Arena::Frame frame(scratch);
  testing_support::expect_user_error([&] { scratch.take(DType::uint8, {static_cast<std::int64_t>(too_much())}); },
                                     {"workspace", "train.micro_batch"});
}

}  // namespace
}  // namespace fulmen
