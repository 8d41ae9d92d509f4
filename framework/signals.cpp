// The flag that stop signals set. A signal handler may touch nothing else, so it is the one global of this folder.
#include "framework/signals.h"

#include <csignal>

#include "framework/error.h"

namespace fulmen {

namespace {

volatile std::sig_atomic_t caught = 0;
volatile std::sig_atomic_t interrupted = 0;

void on_signal(int signal) {
  if (signal == SIGINT && interrupted != 0) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);   // delivered when this handler returns
    return;
  }
  if (signal == SIGINT) interrupted = 1;
  if (caught == 0) caught = signal;
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGUSR1, SIGTERM, SIGINT}) {
    if (sigaction(signal, &action, nullptr) != 0) throw_system_error("cannot catch a stop signal");
  }
}

int stop_signal() { return caught; }

}  // namespace fulmen
