// The flags that signals set. A signal handler may touch nothing else, so these are the only globals of this folder.
#include "framework/signals.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <iterator>
#include <thread>
#include <vector>

#include "framework/error.h"

namespace fulmen {

namespace {

std::atomic<int> caught = 0;
std::atomic<bool> interrupted = false;
std::atomic<bool> obeyed = false;
std::atomic<bool> terminated = false;
std::atomic<int> fatal = 0;
std::atomic<bool> fatal_noted = false;
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

// May run as a handler: lock-free atomics and _exit only.
void note(int signal) {
  if (obeyed.load() || (signal == SIGINT && interrupted.exchange(true))) _exit(128 + signal);
  if (signal == SIGTERM) terminated = true;
  int none = 0;
  caught.compare_exchange_strong(none, signal);
}

// nohup ignores SIGHUP for the program that it starts.
bool hangup_is_ignored() {
  struct sigaction action {};
  if (sigaction(SIGHUP, nullptr, &action) != 0) throw_system_error("cannot ask for the action of SIGHUP");
  return action.sa_handler == SIG_IGN;
}

std::vector<int> stop_signals() {
  std::vector<int> signals = {SIGUSR1, SIGTERM, SIGINT};
  if (!hangup_is_ignored()) signals.push_back(SIGHUP);
  return signals;
}

constexpr int fatal_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
struct sigaction before[std::size(fatal_signals)] = {};

// A handler: lock-free atomics, nanosleep, sigaction and raise only. It runs on a stack of its own where it can.
void hold(int signal) {
  int none = 0;
  if (fatal.compare_exchange_strong(none, signal)) {
    const timespec pause = {0, 10'000'000};
    for (int i = 0; i < 300 && !fatal_noted.load(); ++i) nanosleep(&pause, nullptr);
  }
  for (std::size_t i = 0; i < std::size(fatal_signals); ++i)
    if (fatal_signals[i] == signal) sigaction(signal, &before[i], nullptr);
  raise(signal);  // blocked until this handler returns
}

}  // namespace

void catch_stop_signals() {
  // Threads that exist already and do no products (a library's own) may still be picked: for them there is a handler.
  struct sigaction action {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : stop_signals()) {
    if (sigaction(signal, &action, nullptr) != 0) throw_system_error("cannot catch a stop signal");
    sigaddset(&set, signal);
  }
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

bool told_to_terminate() { return terminated; }

void obey_stop_signals() { obeyed = true; }

void hold_fatal_signals() {
  static std::atomic<bool> held = false;
  if (held.exchange(true)) return;
  // The calling thread, which runs the step, may die of a full stack, or in the middle of a product (see signals.h).
  static char stack[64 * 1024];
  stack_t alternative = {};
  alternative.ss_sp = stack;
  alternative.ss_size = sizeof stack;
  if (sigaltstack(&alternative, nullptr) != 0) throw_system_error("cannot give signals a stack");
  struct sigaction action = {};
  action.sa_handler = hold;
  action.sa_flags = SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < std::size(fatal_signals); ++i)
    if (sigaction(fatal_signals[i], &action, &before[i]) != 0) throw_system_error("cannot hold a fatal signal");
}

int fatal_signal() { return fatal; }

void let_fatal_signal_go() { fatal_noted = true; }

}  // namespace fulmen
