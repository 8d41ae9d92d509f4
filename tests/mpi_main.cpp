// Runs the tests of a program on every MPI rank: rank 0 reports the progress, every rank its failures. A failure on one
// rank fails them all. A test that hangs is named on every rank and aborted.
#include "tests/mpi_main.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "framework/error.h"

namespace {

fulmen::MpiSession* session = nullptr;
fulmen::Communicator* world = nullptr;
std::array<char, 512> watchdog_message;  // ready made: a signal handler may not format

constexpr unsigned watchdog_seconds = 100;

// A test may take FULMEN_TEST_WATCHDOG_SECONDS instead.
unsigned seconds_allowed() {
  const char* text = std::getenv("FULMEN_TEST_WATCHDOG_SECONDS");
  return text != nullptr ? static_cast<unsigned>(std::strtoul(text, nullptr, 10)) : watchdog_seconds;
}

extern "C" void on_alarm(int) {
  const ssize_t written = write(STDERR_FILENO, watchdog_message.data(), std::strlen(watchdog_message.data()));
  sleep(written > 0 ? 2 : 3);  // the other ranks' watchdogs speak, too, before the first abort ends the job
  std::abort();
}

// Starts the watchdog anew. `doing` tells what hangs if it bites.
void watch(const std::string& doing) {
  const std::string text = fmt::format("[rank {}] hangs {}\n", world->rank(), doing);
  const std::size_t length = std::min(text.size(), watchdog_message.size() - 1);
  std::copy_n(text.data(), length, watchdog_message.data());
  watchdog_message[length] = '\0';
  alarm(seconds_allowed());
}

class RankListener final : public testing::EmptyTestEventListener {
 public:
  void OnTestStart(const testing::TestInfo& test) override {
    test_ = fmt::format("{}.{}", test.test_suite_name(), test.name());
    watch("in " + test_);
  }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed() || world->rank() == 0) return;  // rank 0 has the usual printer
    std::fprintf(stderr, "[rank %d] %s failed at %s:%d: %s\n", world->rank(), test_.c_str(),
                 result.file_name() != nullptr ? result.file_name() : "-", result.line_number(), result.message());
    std::fflush(stderr);
  }

 private:
  std::string test_;  // asking GoogleTest for it while it reports a failure would deadlock
};

int run_tests() {
  testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
  if (world->rank() != 0) delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new RankListener);
  std::signal(SIGALRM, on_alarm);
  const auto failed = static_cast<std::int64_t>(RUN_ALL_TESTS() != 0);
  watch("at the end, waiting for the other ranks");
  const std::int64_t failed_anywhere = world->all_reduce(failed, fulmen::ReduceOp::max);
  alarm(0);
  return failed_anywhere != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

}  // namespace

namespace fulmen {
MpiSession& test_session() { return *session; }
Communicator& test_world() { return *world; }
}  // namespace fulmen

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  fulmen::MpiSession own_session;
  const std::unique_ptr<fulmen::Communicator> own_world = own_session.world();
  session = &own_session;
  world = own_world.get();
  return run_tests();
}
