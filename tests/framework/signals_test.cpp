// Stop signals. Each case runs in a process of its own.
#include "framework/signals.h"

#include <csignal>
#include <cstdlib>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

class Signals : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(Signals, EachSetsTheFlagOnly) {
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    EXPECT_EXIT(
        {
          catch_stop_signals();
          if (stop_signal() != 0) std::exit(1);
          std::raise(signal);
          std::exit(stop_signal() == signal ? 0 : 2);
        },
        ::testing::ExitedWithCode(0), "");
  }
}

TEST_F(Signals, TheFirstIsKept) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        for (const int signal : {SIGUSR1, SIGTERM, SIGTERM, SIGINT}) std::raise(signal);
        std::exit(stop_signal() == SIGUSR1 ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(Signals, ASecondInterruptEndsTheProcess) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        std::raise(SIGINT);
        std::raise(SIGINT);
        std::exit(0);
      },
      ::testing::KilledBySignal(SIGINT), "");
}

}  // namespace
}  // namespace fulmen
