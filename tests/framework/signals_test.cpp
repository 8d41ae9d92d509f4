// Stop signals. Each case runs in a process of its own.
#include "framework/signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

#include <gtest/gtest.h>

namespace fulmen {
namespace {

class Signals : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

// The signal that is noted within ten seconds, or 0.
int wait_for_signal() {
  for (int i = 0; i < 1000 && stop_signal() == 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return stop_signal();
}

// Whether this thread would run a handler for any of them.
bool may_be_interrupted() {
  sigset_t blocked;
  pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  return !sigismember(&blocked, SIGUSR1) || !sigismember(&blocked, SIGTERM) || !sigismember(&blocked, SIGINT) ||
         !sigismember(&blocked, SIGHUP);
}

TEST_F(Signals, EachSetsTheFlagOnly) {
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT, SIGHUP}) {
    EXPECT_EXIT(
        {
          catch_stop_signals();
          if (stop_signal() != 0) std::exit(1);
          kill(getpid(), signal);
          std::exit(wait_for_signal() == signal ? 0 : 2);
        },
        ::testing::ExitedWithCode(0), "");
  }
}

TEST_F(Signals, TheFirstIsKept) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        kill(getpid(), SIGUSR1);
        wait_for_signal();
        kill(getpid(), SIGTERM);
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        std::exit(stop_signal() == SIGUSR1 ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(Signals, AHangUpStaysIgnoredWhereItWas) {
  EXPECT_EXIT(
      {
        signal(SIGHUP, SIG_IGN);  // as nohup does
        catch_stop_signals();
        kill(getpid(), SIGHUP);
        std::this_thread::sleep_for(std::chrono::milliseconds(200));
        std::exit(stop_signal() == 0 ? 0 : 2);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(Signals, ASecondInterruptEndsTheProcess) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        kill(getpid(), SIGINT);
        wait_for_signal();
        kill(getpid(), SIGINT);
        std::this_thread::sleep_for(std::chrono::seconds(10));
        std::exit(0);
      },
      ::testing::ExitedWithCode(128 + SIGINT), "");
}

TEST_F(Signals, EndTheProcessOnceObeyed) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        obey_stop_signals();
        kill(getpid(), SIGTERM);
        std::this_thread::sleep_for(std::chrono::seconds(10));
        std::exit(0);
      },
      ::testing::ExitedWithCode(128 + SIGTERM), "");
}

TEST_F(Signals, NeverInterruptThisThreadNorLaterOnes) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        bool later = true;
        std::thread([&] { later = may_be_interrupted(); }).join();
        std::exit(may_be_interrupted() || later ? 2 : 0);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(Signals, AFatalOneWaitsForItsRecord) {
  EXPECT_EXIT(
      {
        hold_fatal_signals();
        std::thread([] {
          while (fatal_signal() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
          std::fprintf(stderr, "recorded %d\n", fatal_signal());
          let_fatal_signal_go();
        }).detach();
        std::abort();
      },
      ::testing::KilledBySignal(SIGABRT), "recorded 6");
}

TEST_F(Signals, AFatalOneDoesNotWaitForEver) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EXIT(
      {
        hold_fatal_signals();
        kill(getpid(), SIGSEGV);
      },
      ::testing::KilledBySignal(SIGSEGV), "");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST_F(Signals, TerminationIsToldFromOtherStops) {
  EXPECT_EXIT(
      {
        catch_stop_signals();
        kill(getpid(), SIGUSR1);
        wait_for_signal();
        if (told_to_terminate()) std::exit(2);
        kill(getpid(), SIGTERM);
        for (int i = 0; i < 1000 && !told_to_terminate(); ++i)
          std::this_thread::sleep_for(std::chrono::milliseconds(10));
        std::exit(told_to_terminate() && stop_signal() == SIGUSR1 ? 0 : 3);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace fulmen
