// The ranks of this job, and how they end together.
#include "launch/world.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "framework/log.h"
#include "framework/signals.h"
#include "framework/threads.h"

namespace fulmen {

Communicator& World::communicator() {
  if (communicator_) return *communicator_;
  if (MpiSession::launched()) {
    session_ = std::make_unique<MpiSession>();
    communicator_ = session_->world();
  } else {
    communicator_ = make_self_communicator();
  }
  return *communicator_;
}

int World::rank() const { return communicator_ ? communicator_->rank() : MpiSession::environment_rank(); }
int World::size() const { return communicator_ ? communicator_->size() : MpiSession::environment_size(); }

int World::fail(const Error& error) {
  if (rank() > 0) {
    // Usually a lower rank says the same, and this one is ended before it speaks: at once by an abort over MPI, after more
    // than a second where MPI has not started and the launcher only sees a process end.
    obey_stop_signals();
    const int patience = communicator_ ? 2000 : 5000;
    std::this_thread::sleep_for(std::chrono::milliseconds(patience + 20 * std::min(rank(), 50)));
  }
  const std::string place = size() > 1 ? " [rank " + std::to_string(rank()) + "]" : "";
  std::fflush(stdout);
  std::fprintf(stderr, "fulmen: error%s: %s\n", place.c_str(), error.what());
  std::fflush(stderr);
  if (communicator_ && size() > 1) communicator_->abort(static_cast<int>(error.code()));
  return static_cast<int>(error.code());
}

namespace {

int environment_number(const char* name) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : 0;
}

}  // namespace

void configure_threads(const std::optional<std::int64_t>& wanted) {
  const int given = environment_number("SLURM_CPUS_ON_NODE");   // cores of this host that the job was given
  const int cores = given > 0 ? given : host_cores();
  const int share = std::max(1, cores / std::max(1, MpiSession::environment_local_size()));
  int threads = wanted ? static_cast<int>(*wanted) : share;
  if (const int environment = environment_number("OMP_NUM_THREADS"); environment > 0) threads = environment;
  if (available_cores() < threads)
    log_warning("{} threads on {} core(s): the launcher binds this rank to fewer cores than its share; "
                "pass --bind-to none to mpirun", threads, available_cores());
  set_compute_threads(threads);
}

}  // namespace fulmen
