// The ranks of this job, their devices, and how they end together.
#include "launch/world.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "framework/gpu.h"
#include "framework/hash.h"
#include "framework/log.h"
#include "framework/signals.h"
#include "framework/text.h"
#include "framework/threads.h"
#include "parallel/collective_order.h"
#include "parallel/nccl_communicator.h"
#include "parallel/recording_communicator.h"
#include "parallel/staged_communicator.h"

namespace fulmen {

namespace {

// srun without MPI, for example, starts as many single ranks as it was asked for, and each would train by itself.
void require_all_ranks(int known, int started) {
  if (known >= started) return;  // not every launcher tells the number
  throw UserError(
      "MPI",
      fmt::format("it knows {} rank(s), but the launcher started {}: they would not work together", known, started),
      "start with `srun --mpi=pmix` (`srun --mpi=list` says what there is) or with the mpirun of the MPI that this "
      "program was built with");
}

}  // namespace

std::unique_ptr<Communicator> World::all_ranks() const {
  return session_ ? session_->world() : make_self_communicator();
}

Communicator& World::communicator() {
  if (communicator_) return *communicator_;
  start_up_.run("MPI", [&] {
    const int started = MpiSession::environment_size();
    if (MpiSession::launched()) session_ = std::make_unique<MpiSession>();
    std::unique_ptr<Communicator> ranks = all_ranks();
    require_all_ranks(ranks->size(), started);
    recorder_ = std::make_shared<FlightRecorder>(ranks->rank(), ranks->size(), keeps_order_);
    if (keeps_order_) order_communicator_ = all_ranks();
    communicator_ = make_recording_communicator(std::move(ranks), recorder_, "world");
  });
  return *communicator_;
}

void World::check_order() { check_collective_order(*recorder_, *order_communicator_); }

void World::watch(const std::filesystem::path& folder, double timeout, Device device) {
  communicator();
  watchdog_ = std::make_unique<Watchdog>(recorder_, *communicator_, folder, timeout, device);
}

void World::expect_end() { watchdog_->expect_end(); }

void World::stop_watching() {
  watchdog_->finish();
  watchdog_.reset();
}

PhaseTimes& World::start_up() {
  if (recorder_) start_up_.set("communicators", recorder_->creation_seconds());
  return start_up_;
}

namespace {

// Whether two ranks of the job compute on one GPU. Collective.
bool ranks_share_gpus(Communicator& ranks, Device device) {
  const std::string uuid = gpu::properties(device.index).uuid;
  auto mine = static_cast<std::int64_t>(hash_bytes(uuid.data(), uuid.size()));
  std::vector<std::int64_t> all(static_cast<std::size_t>(ranks.size()));
  ranks.all_gather(Tensor(&mine, DType::int64, {1}), Tensor(all.data(), DType::int64, {ranks.size()}), Stream{});
  std::ranges::sort(all);
  return std::ranges::adjacent_find(all) != all.end();
}

}  // namespace

Communicator& World::communicator(Device device, const std::string& transport) {
  Communicator& host = communicator();
  FULMEN_CHECK(!device_communicator_, "the ranks of this job have chosen their devices before");
  const auto with_gpu =
      host.all_reduce(static_cast<std::int64_t>(device.kind == DeviceKind::cuda ? 1 : 0), ReduceOp::sum);
  if (with_gpu != 0 && with_gpu != host.size())
    throw UserError("run.device: auto", fmt::format("{} of {} ranks found a GPU", with_gpu, host.size()),
                    "set run.device to cpu, or start ranks only where there are GPUs");
  if (with_gpu == 0) {
    if (transport == "nccl")
      throw UserError("parallel.transport", "nccl moves GPU memory only", "use auto, or set run.device to cuda");
    return host;
  }
  const bool shared = host.size() > 1 && ranks_share_gpus(host, device);
  if (shared && transport == "nccl")
    throw UserError("parallel.transport", "nccl needs a GPU for each rank, but some share one",
                    "start no more ranks on a node than it has GPUs, or use auto or host");
  if (shared && rank() == 0) log_warning("some ranks share a GPU: what they exchange goes through host memory");
  const bool staged = transport == "host" || (transport == "auto" && (shared || host.size() == 1));
  device_communicator_ = make_recording_communicator(
      staged ? make_staged_communicator(all_ranks(), device) : make_nccl_communicator(all_ranks(), device), recorder_,
      "world of GPUs");
  return *device_communicator_;
}

int World::rank() const { return communicator_ ? communicator_->rank() : MpiSession::environment_rank(); }
int World::size() const { return communicator_ ? communicator_->size() : MpiSession::environment_size(); }

namespace {

// Work that waits on a GPU for other ranks would keep this process from ending; ending it may itself take too long.
void cancel_operations(std::shared_ptr<FlightRecorder> recorder) {
  const auto done = std::make_shared<std::atomic<bool>>(false);
  std::thread([recorder = std::move(recorder), done] {
    recorder->cancel();
    *done = true;
  }).detach();
  for (int i = 0; i < 200 && !*done; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
}

}  // namespace

int World::fail(const Error& error) {
  int rank = 0, size = 1;
  try {
    rank = this->rank(), size = this->size();
  } catch (const UserError&) {
    // It is the launcher's environment that is wrong, and this is what is reported.
  }
  if (watchdog_) {
    // An operation that the watchdog cancelled is not what went wrong.
    if (watchdog_->ends_the_job()) std::this_thread::sleep_for(std::chrono::seconds(30));
    watchdog_->rank_failed(error.what());
  }
  if (rank > 0) {
    // Usually a lower rank reports the same, and this rank is ended before it reports. An abort over MPI ends it at
    // once. Where MPI has not started, the launcher only sees a process end, which takes more than a second.
    obey_stop_signals();
    const int patience = communicator_ ? 2000 : 5000;
    std::this_thread::sleep_for(std::chrono::milliseconds(patience + 20 * std::min(rank, 50)));
  }
  const std::string place = size > 1 ? " [rank " + std::to_string(rank) + "]" : "";
  std::fflush(stdout);
  std::fprintf(stderr, "fulmen: error%s: %s\n", place.c_str(), printable(error.what()).c_str());
  std::fflush(stderr);
  if (communicator_ && size > 1) cancel_operations(recorder_);
  if (communicator_ && size > 1) communicator_->abort(static_cast<int>(error.code()));
  return static_cast<int>(error.code());
}

Device choose_device(const std::string& wish, const std::string& key) {
  if (wish != "auto" && wish != "cpu" && wish != "cuda")
    throw UserError(key, "'" + wish + "' is unknown", "use auto, cpu or cuda");
  if (wish == "cpu") return Device::cpu();
  const int gpus = gpu::device_count();
  if (gpus > 0) return Device::cuda(MpiSession::environment_local_rank() % gpus);
  if (wish == "auto") return Device::cpu();
  throw UserError(key + ": " + wish, gpu::unavailable_reason(), "set it to cpu or auto, or run where there is a GPU");
}

std::string describe_device(Device device) {
  if (device.kind == DeviceKind::cpu) return fmt::format("CPU, {} threads", compute_threads());
  return fmt::format("GPU {}, {}", device.index, gpu::properties(device.index).name);
}

namespace {

// The value of OMP_NUM_THREADS for the outermost level, "8,2"; 0 where it says nothing. OpenMP itself warns of
// nonsense.
int openmp_threads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  return text ? std::atoi(text) : 0;
}

}  // namespace

void configure_threads(const std::optional<std::int64_t>& wanted) {
  const int given = MpiSession::environment_cores().value_or(0);
  const int cores = given > 0 ? given : host_cores();
  const int share = std::max(1, cores / std::max(1, MpiSession::environment_local_size()));
  int threads = wanted ? static_cast<int>(*wanted) : share;
  if (const int environment = openmp_threads(); environment > 0) threads = environment;
  constexpr int most_per_core =
      64;  // beyond, threads wait for each other for minutes, and some have no room for a stack
  if (threads > most_per_core * host_cores())
    throw UserError("run.threads", fmt::format("{} threads on the {} core(s) of this host", threads, host_cores()),
                    "give no more than it has cores; OMP_NUM_THREADS goes before the configuration");
  if (available_cores() < threads)
    log_warning(
        "{} threads on {} core(s): the launcher binds this rank to fewer cores than its share; "
        "pass --bind-to none to mpirun",
        threads, available_cores());
  set_compute_threads(threads);
}

}  // namespace fulmen
