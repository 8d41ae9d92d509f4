// The flag that stop signals set. A signal handler may touch nothing else, so it is the one global of this folder.
#include "framework/signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "framework/error.h"

namespace fulmen {

namespace {

std::atomic<int> caught = 0;
std::atomic<bool> interrupted = false;
std::atomic<bool> obeyed = false;
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

// May run as a handler: lock-free atomics and _exit only.
void note(int signal) {
  if (obeyed.load() || (signal == SIGINT && interrupted.exchange(true))) _exit(128 + signal);
  int none = 0;
  caught.compare_exchange_strong(none, signal);
}

constexpr int stop_signals[] = {SIGUSR1, SIGTERM, SIGINT};

sigset_t stop_signal_set() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : stop_signals) sigaddset(&set, signal);
  return set;
}

}  // namespace

void catch_stop_signals() {
  // Threads that exist already and do no products (a library's own) may still be picked: for them there is a handler.
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  for (const int signal : stop_signals)
    if (sigaction(signal, &action, nullptr) != 0) throw_system_error("cannot catch a stop signal");

  const sigset_t set = stop_signal_set();
  if (pthread_sigmask(SIG_BLOCK, &set, nullptr) != 0) throw_system_error("cannot block the stop signals");
#pragma omp parallel
  pthread_sigmask(SIG_BLOCK, &set, nullptr);

  static std::atomic<bool> waiting = false;
  if (waiting.exchange(true)) return;
  std::thread([set] {
    for (int signal = 0; sigwait(&set, &signal) == 0;) note(signal);
  }).detach();
}

int stop_signal() { return caught; }

void obey_stop_signals() { obeyed = true; }

}  // namespace fulmen
