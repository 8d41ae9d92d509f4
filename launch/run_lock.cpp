// Taking, renewing and giving back the lock of a run folder.
#include "launch/run_lock.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <ctime>
#include <map>
#include <string>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "framework/configuration.h"
#include "framework/error.h"
#include "framework/files.h"
#include "framework/log.h"
#include "launch/slurm_job.h"
#include "launch/watchdog.h"

namespace fulmen {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds renewal{5};

struct Holder {
  RankPlace place;
  std::string job, since;
};

std::string own_text() {
  const RankPlace place = own_place();
  return fmt::format("host: {}\nmachine: {}\npid: {}\nstarted: {}\njob: \"{}\"\nsince: \"{:%Y-%m-%d %H:%M:%S}\"\n",
                     place.host, place.machine, place.pid, place.started, slurm_job().id,
                     fmt::localtime(std::time(nullptr)));
}

// Empty where there is none.
std::string text_of(const fs::path& file) {
  try {
    return read_text(file);
  } catch (const UserError&) {
    return {};
  }
}

// A lock that was cut short, or was just removed, names no process.
Holder holder_of(const std::string& text, const fs::path& file) {
  Holder holder;
  try {
    std::map<std::string, std::string> keys = flatten_yaml(text, file.string());
    holder.place.host = keys["host"];
    holder.place.machine = keys["machine"];
    holder.place.pid = std::strtoll(keys["pid"].c_str(), nullptr, 10);
    holder.place.started = std::strtoll(keys["started"].c_str(), nullptr, 10);
    holder.job = keys["job"];
    holder.since = keys["since"];
  } catch (const UserError&) {
    return {};
  }
  return holder;
}

// Makes the file with its content at once, or says that it is there already.
bool create(const fs::path& file, const std::string& text) {
  const fs::path draft = file.string() + fmt::format(".{}", getpid());
  write_text_atomically(draft, text);
  const int code = ::link(draft.c_str(), file.c_str()) == 0 ? 0 : errno;
  ::unlink(draft.c_str());
  if (code == 0) return true;
  if (code == EEXIST) return false;
  errno = code;
  throw_system_error(fmt::format("cannot make {}", file.string()));
}

fs::file_time_type time_of(const fs::path& file) {
  std::error_code ignored;
  return fs::last_write_time(file, ignored);
}

// Whether the holder of the lock is gone.
bool stale(const Holder& holder, const fs::path& file, double patience) {
  if (holder.place.pid == 0) return true;
  if (shares_processes(holder.place, own_place())) return !process_lives(holder.place);
  if (!holder.job.empty() && holder.job == slurm_job().id) return true;  // requeued elsewhere
  log_info("{} is of another host or container ({}): watching for {:.0f} s whether it is renewed", file.string(),
           holder.place.host, patience);
  const fs::file_time_type before = time_of(file);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(patience);
  while (std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    if (time_of(file) != before) return false;
  }
  return true;
}

// Removes the lock that was read as `text`. Another process may have removed it, too, and taken the folder since: its
// lock, moved away in place of the old lock, is put back.
void remove(const fs::path& file, const std::string& text) {
  const fs::path aside = file.string() + fmt::format(".{}.old", getpid());
  if (::rename(file.c_str(), aside.c_str()) != 0) {
    if (errno == ENOENT) return;
    throw_system_error(fmt::format("cannot remove {}", file.string()));
  }
  const bool same = text_of(aside) == text;
  if (!same && ::link(aside.c_str(), file.c_str()) != 0) log_warning("{} was taken by two runs at once", file.string());
  ::unlink(aside.c_str());
}

}  // namespace

RunLock::RunLock(const fs::path& folder, double patience) : file_(folder / "run.lock"), text_(own_text()) {
  while (!create(file_, text_)) {
    const std::string found = text_of(file_);
    const Holder holder = holder_of(found, file_);
    if (!stale(holder, file_, patience))
      throw UserError(
          fmt::format("run.directory: {}", folder.string()),
          fmt::format("is in use by process {} on {}, since {}", holder.place.pid, holder.place.host, holder.since),
          "stop that run (a file STOP in the folder does), or choose another run.directory");
    if (holder.place.pid != 0)
      log_info("taking over {} of process {} on {}, which has ended", file_.string(), holder.place.pid,
               holder.place.host);
    remove(file_, found);
  }
  thread_ = std::thread([this] { renew(); });
}

RunLock::~RunLock() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  wake_.notify_all();
  thread_.join();
  if (text_of(file_) == text_) ::unlink(file_.c_str());
}

std::string RunLock::taken_by() {
  const std::lock_guard lock(mutex_);
  return taken_by_;
}

void RunLock::renew() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, renewal, [&] { return over_; })) {
    lock.unlock();
    std::string other = look();
    lock.lock();
    taken_by_ = std::move(other);
  }
}

// Renews the lock; makes it again where it was removed, unless another run was faster.
std::string RunLock::look() const {
  try {
    if (text_of(file_) == text_) {
      std::error_code ignored;
      fs::last_write_time(file_, fs::file_time_type::clock::now(), ignored);
    } else if (create(file_, text_)) {
      log_warning("{} was removed: it is made again", file_.string());
    } else if (const std::string found = text_of(file_); found != text_) {
      const Holder holder = holder_of(found, file_);
      return fmt::format("process {} on {}, since {}", holder.place.pid, holder.place.host, holder.since);
    }
  } catch (const Error&) {
    // The folder is away: whoever writes into it says so.
  }
  return {};
}

}  // namespace fulmen
