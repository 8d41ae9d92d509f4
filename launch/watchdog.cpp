// The watchdog's thread: it looks, writes records, speaks and ends the job.
#include "launch/watchdog.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/gpu.h"
#include "framework/log.h"
#include "framework/signals.h"
#include "framework/text.h"
#include "parallel/flight_report.h"

namespace fulmen {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds period{50};
constexpr int neighbours_watched = 4;  // by each rank, so that large hosts do not read much

// State and start of a process as the kernel lists them; false when there is none.
bool read_process(std::int64_t pid, char& state, std::int64_t& started) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  if (!std::getline(file, line)) return false;
  const std::size_t name_end = line.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return false;
  std::istringstream rest(line.substr(name_end + 1));
  rest >> state;
  std::string skipped;
  for (int field = 4; field < 22; ++field) rest >> skipped;
  return static_cast<bool>(rest >> started);
}

template <class F>
bool wait_until(milliseconds limit, F&& condition) {
  const auto end = Clock::now() + limit;
  while (!condition()) {
    if (Clock::now() >= end) return false;
    std::this_thread::sleep_for(milliseconds(20));
  }
  return true;
}

}  // namespace

RankPlace own_place() {
  RankPlace place;
  char host[256] = {};
  if (gethostname(host, sizeof host - 1) != 0) throw_system_error("cannot tell this host's name");
  place.host = host;
  place.pid = getpid();
  char state = 0;
  if (!read_process(place.pid, state, place.started)) place.started = 0;
  std::ifstream boot("/proc/sys/kernel/random/boot_id");
  std::error_code error;
  const fs::path processes = fs::read_symlink("/proc/self/ns/pid", error);  // "pid:[4026531836]"
  if (std::string id; std::getline(boot, id) && !error) place.machine = id + " " + processes.string();
  return place;
}

bool shares_processes(const RankPlace& a, const RankPlace& b) {
  return !a.machine.empty() && a.machine == b.machine && a.host == b.host;
}

namespace {

// As the kernel lists it: T for stopped; 0 when the process has ended.
char state_of(const RankPlace& place) {
  char state = 0;
  std::int64_t started = 0;
  const bool there =
      read_process(place.pid, state, started) && started == place.started && state != 'Z' && state != 'X';
  return there ? state : '\0';
}

}  // namespace

bool process_lives(const RankPlace& place) { return state_of(place) != '\0'; }

std::vector<RankPlace> gather_places(Communicator& ranks) {
  struct Packed {
    char host[64], machine[64];
    std::int64_t pid, started;
  };
  const RankPlace own = own_place();
  Packed mine = {};
  std::copy_n(own.host.data(), std::min(own.host.size(), sizeof mine.host - 1), mine.host);
  std::copy_n(own.machine.data(), std::min(own.machine.size(), sizeof mine.machine - 1), mine.machine);
  mine.pid = own.pid;
  mine.started = own.started;
  std::vector<Packed> all(static_cast<std::size_t>(ranks.size()));
  const auto bytes = static_cast<std::int64_t>(sizeof(Packed));
  ranks.all_gather(Tensor(&mine, DType::uint8, {bytes}), Tensor(all.data(), DType::uint8, {bytes * ranks.size()}), {});
  std::vector<RankPlace> places;
  for (const Packed& packed : all) places.push_back({packed.host, packed.pid, packed.started, packed.machine});
  return places;
}

Watchdog::Watchdog(std::shared_ptr<FlightRecorder> recorder, Communicator& ranks, fs::path folder, double timeout,
                   Device device)
    : recorder_(std::move(recorder)),
      ranks_(ranks),
      folder_(std::move(folder)),
      timeout_(timeout),
      device_(device),
      places_(gather_places(ranks)) {
  const auto self = static_cast<std::size_t>(ranks_.rank());
  for (std::size_t rank = 0; rank < places_.size(); ++rank)
    if (rank != self && shares_processes(places_[rank], places_[self]) && process_lives(places_[rank]))
      neighbours_.push_back(static_cast<int>(rank));
  std::error_code ignored;
  if (ranks_.rank() == 0) {
    const fs::path previous = folder_.parent_path() / "flight-previous";
    if (fs::exists(folder_, ignored)) {
      fs::remove_all(previous, ignored);
      fs::rename(folder_, previous, ignored);
    }
    fs::create_directories(folder_, ignored);
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (std::size_t rank = 0; rank < places_.size(); ++rank)
      list.push_back({{"rank", rank}, {"host", places_[rank].host}, {"pid", places_[rank].pid}});
    write_text_atomically(folder_ / "ranks.json", nlohmann::ordered_json{{"ranks", list}}.dump(1) + "\n");
  }
  ranks_.barrier();
  const auto sees = static_cast<std::int64_t>(fs::exists(folder_ / "ranks.json", ignored));
  shared_ = ranks_.all_reduce(sees, ReduceOp::min) != 0;
  if (!shared_) fs::create_directories(folder_, ignored);
  if (!shared_ && ranks_.rank() == 0)
    log_warning("not all ranks see {}: flight records are kept on each host", folder_.string());
  hold_fatal_signals();
  thread_ = std::thread([this] { watch(); });
}

Watchdog::~Watchdog() { stop(); }

void Watchdog::stop() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::expect_end() {
  finished_ = Clock::now().time_since_epoch();
  ranks_.barrier();
}

void Watchdog::finish() {
  std::error_code ignored;
  finished_ = Clock::now().time_since_epoch();
  fs::remove(flight_file(folder_, ranks_.rank()), ignored);
  ranks_.barrier();
  stop();
  if (ranks_.rank() == 0 || !shared_) fs::remove_all(folder_, ignored);
}

void Watchdog::rank_failed(const std::string& message) {
  stop();
  record("failure", message.substr(0, message.find('\n')));
}

void Watchdog::watch() {
  try {
    if (device_.kind == DeviceKind::cuda) gpu::make_current(device_);
  } catch (const Error& error) {
    log_warning("the watchdog cannot use the GPU: {}", error.what());
  }
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, period, [&] { return over_; })) {
    lock.unlock();
    look();
    lock.lock();
  }
}

void Watchdog::look() {
  if (const int signal = fatal_signal(); signal != 0) {
    const char* name = sigabbrev_np(signal);
    record("signal", name != nullptr ? fmt::format("SIG{}", name) : fmt::format("signal {}", signal));
    let_fatal_signal_go();
    std::this_thread::sleep_for(milliseconds(5000));
    return;
  }
  if (comes_to_an_end()) return;
  if (recorder_->ranks() == 1) {
    if (timeout_ > 0 && recorder_->blocked_seconds() > timeout_) end_job("timeout", "");
    return;
  }
  if (told_to_terminate() && !std::exchange(terminated_, true)) on_termination();
  // The rest need not be looked at as often.
  if (Clock::now() < next_look_) return;
  next_look_ =
      Clock::now() + milliseconds(timeout_ > 0 ? static_cast<int>(1000 * std::clamp(timeout_ / 10, 0.1, 0.5)) : 500);
  if (!dead_neighbours(neighbours_watched).empty()) end_job("asked", "a rank of this job has ended");
  if (timeout_ > 0 && recorder_->blocked_seconds() > timeout_)
    end_job("timeout", fmt::format("an operation between ranks was not completed within {} s (run.timeout)", timeout_));
  std::error_code ignored;
  if (fs::exists(folder_ / "request", ignored)) {
    std::ifstream request(folder_ / "request");
    std::string why;
    std::getline(request, why);
    end_job("asked", why);
  }
}

void Watchdog::record(const std::string& reason, const std::string& detail) {
  recorded_ = true;
  // A rank that was stopped and wakes while the job is ended would contradict what was said of it.
  std::error_code ignored;
  if (reason != "failure" && fs::exists(folder_ / "verdict.txt", ignored)) return;
  try {
    recorder_->write(folder_, reason, detail);
  } catch (const std::exception& error) {
    log_warning("no flight record: {}", error.what());
  }
}

// Ranks of this host, the next `most` in a ring of them, whose processes are gone although none said that it failed.
std::vector<int> Watchdog::dead_neighbours(int most) const {
  std::vector<int> dead, watched = neighbours_;
  std::rotate(watched.begin(), std::ranges::upper_bound(watched, ranks_.rank()), watched.end());
  if (static_cast<int>(watched.size()) > most) watched.resize(static_cast<std::size_t>(most));
  for (const int rank : watched)
    if (!process_lives(places_[static_cast<std::size_t>(rank)])) dead.push_back(rank);
  if (dead.empty()) return dead;
  // The rank that failed reports, and the rest end with it.
  for (const auto& [rank, reason] : flight_records(folder_, recorder_->ranks()))
    if (reason == "failure") return {};
  return dead;
}

// A launcher ends the ranks of a job that any rank has left. A user may also ask all ranks, or a single rank, to stop
// with a checkpoint. The former it was if most ranks have got the signal, and some cannot have heard it.
void Watchdog::on_termination() {
  record("terminated", "SIGTERM");
  // Launchers follow with SIGKILL after a second or more.
  wait_until(milliseconds(400), [&] { return comes_to_an_end() || !dead_neighbours().empty() || all_recorded(false); });
  if (comes_to_an_end()) return;
  if (!dead_neighbours().empty()) end_job("terminated", "a rank of this job has ended");
  const auto records = flight_records(folder_, recorder_->ranks());
  if (!shared_ || !all_recorded(true) || all_recorded(false) ||
      2 * static_cast<int>(records.size()) <= recorder_->ranks())
    return;
  if (std::ranges::any_of(records, [](const auto& found) { return found.second != "terminated"; })) return;
  wait_for_turn();
  if (comes_to_an_end()) return;
  if (claim_the_word()) say("the ranks of this job are being ended by SIGTERM");
}

// Whether all ranks that can, or only the ranks of this host, have written their records. A rank that was stopped, or
// has ended, will not.
bool Watchdog::all_recorded(bool here_only) const {
  std::vector<bool> settled(static_cast<std::size_t>(recorder_->ranks()), here_only || !shared_);
  for (const int rank : neighbours_) {
    const char state = state_of(places_[static_cast<std::size_t>(rank)]);
    settled[static_cast<std::size_t>(rank)] = state == '\0' || state == 'T';
  }
  for (const auto& [rank, reason] : flight_records(folder_, recorder_->ranks()))
    settled[static_cast<std::size_t>(rank)] = true;
  return std::ranges::all_of(settled, [](bool is) { return is; });
}

// Whether the run has ended well. Ranks leave once all have come to expect_end(). A neighbour that is gone by then is
// not lost, unless ranks still wait for it.
bool Watchdog::comes_to_an_end() const {
  constexpr std::chrono::seconds patience{5};
  const Clock::duration finished = finished_;
  return finished != Clock::duration::zero() && Clock::now().time_since_epoch() - finished < patience;
}

// Only one rank speaks: the first to make this file.
bool Watchdog::claim_the_word() const {
  const int file = ::open((folder_ / "verdict.txt").c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file < 0) return errno != EEXIST;  // a folder that cannot be written: rather twice than not at all
  ::close(file);
  return true;
}

// The lowest rank that is left goes first: this rank waits if there is, or may be, a lower rank.
void Watchdog::wait_for_turn() const {
  bool lower = false;
  for (const int rank : neighbours_) {
    const char state = state_of(places_[static_cast<std::size_t>(rank)]);
    lower = lower || (rank < ranks_.rank() && state != '\0' && state != 'T');
  }
  for (const auto& [rank, reason] : flight_records(folder_, recorder_->ranks()))
    lower = lower || (rank < ranks_.rank() && reason != "signal" && reason != "failure");
  if (lower) std::this_thread::sleep_for(milliseconds(200 + 20 * std::min(ranks_.rank(), 5)));
}

void Watchdog::say(const std::string& why) const {
  std::string text = why;
  if (holds_flight_records(folder_)) {
    try {
      text += (text.empty() ? "" : "\n") + report_flight(folder_, dead_neighbours()).verdict;
    } catch (const std::exception& error) {
      text += fmt::format("\n{}", error.what());
    }
    text += fmt::format("\n  -> see `fulmen inspect {}`, and that rank's host", folder_.string());
  }
  std::fflush(stdout);
  std::fprintf(stderr, "fulmen: error [rank %d]: %s\n", ranks_.rank(), printable(text).c_str());
  std::fflush(stderr);
  std::ofstream(folder_ / "verdict.txt") << text << "\n";
}

// Ends the processes that the launcher could not end: a stopped process, for example.
void Watchdog::kill_neighbours() const {
  for (const int rank : neighbours_) {
    const RankPlace& place = places_[static_cast<std::size_t>(rank)];
    if (process_lives(place)) kill(static_cast<pid_t>(place.pid), SIGKILL);
  }
}

void Watchdog::end_job(const std::string& reason, const std::string& why) {
  ending_ = true;
  std::error_code ignored;
  if (reason != "asked" || !fs::exists(folder_ / "request", ignored)) std::ofstream(folder_ / "request") << why << "\n";
  record(reason, why);
  // The others write theirs when they see the request. A launcher's SIGKILL follows its SIGTERM after a second.
  wait_until(told_to_terminate() ? milliseconds(250) : milliseconds(2000), [&] { return all_recorded(false); });
  wait_for_turn();
  if (claim_the_word())
    say(why);
  else
    std::this_thread::sleep_for(milliseconds(3000));  // the rank that reports also ends the job
  // Aborting over NCCL may itself wait.
  std::thread([recorder = recorder_] { recorder->cancel(); }).detach();
  std::this_thread::sleep_for(milliseconds(device_.kind == DeviceKind::cuda ? 1000 : 0));
  std::thread([this] {
    std::this_thread::sleep_for(milliseconds(5000));
    kill_neighbours();
    kill(getpid(), SIGKILL);
  }).detach();
  ranks_.abort(static_cast<int>(ExitCode::internal));
  std::_Exit(static_cast<int>(ExitCode::internal));
}

}  // namespace fulmen
