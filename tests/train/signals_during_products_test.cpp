// A stop signal may come at any moment of a matrix product, whatever the product's library does with its stack.
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <thread>

#include <gtest/gtest.h>

#include "framework/signals.h"
#include "kernels/gemm.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen {
namespace {

TEST(StopSignals, DoNotDisturbProducts) {
  FULMEN_CPU_ONLY("a GPU's products have no stack here");
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ExecutionResources resources(Device::cpu());
        const Execution& execution = resources.execution();
        catch_stop_signals();
        std::atomic<bool> done = false;
        std::thread sender([&] {
          while (!done) {
            kill(getpid(), SIGUSR1);
            usleep(50);
          }
        });
        for (int i = 0; i < 400; ++i) {
          // Sizes that differ make the library allocate anew.
          const std::int64_t size = 96 + 32 * (i % 7);
          OwnedTensor a(Device::cpu(), DType::fp32, {size, size}, MemoryKind::workspace, resources.ledger());
          OwnedTensor b(Device::cpu(), DType::fp32, {size, size}, MemoryKind::workspace, resources.ledger());
          linear_backward_weight(execution, a, a, b);
          OwnedTensor c(Device::cpu(), DType::fp32, {size, size}, MemoryKind::workspace, resources.ledger());
          linear_forward(execution, a, b, c);
        }
        done = true;
        sender.join();
        std::exit(stop_signal() == SIGUSR1 ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace fulmen
