// One run at a time in a run folder: the file run.lock in it.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

namespace fulmen {

// Holds the lock of a run folder while it lives. The file names the host, the process and the job, and its time is
// renewed every few seconds. A lock whose process has ended, on this host, is taken over; so is one of an earlier start
// of the same Slurm job, and, after `patience` seconds of watching, one of another host that is not renewed any more.
class RunLock {
 public:
  // Throws UserError when another run holds it.
  explicit RunLock(const std::filesystem::path& folder, double patience = 20.0);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  void renew();

  std::filesystem::path file_;
  std::string text_;  // what it holds while it is this run's
  std::mutex mutex_;  // of the two below
  std::condition_variable wake_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace fulmen
