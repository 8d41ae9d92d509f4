// One run at a time in a run folder: the file run.lock in it.
#pragma once

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

namespace fulmen {

// Holds the lock of a run folder while it lives. The file names the host, the process and the job, and its time is
// renewed every few seconds. A lock whose process has ended, where that can be seen, is taken over. So is the lock of
// an earlier start of the same Slurm job. A lock of another host or container is taken over when it is not renewed
// during `patience` seconds. A lock that somebody removed is made again.
class RunLock {
 public:
  // Throws UserError when another run holds it.
  explicit RunLock(const std::filesystem::path& folder, double patience = 20.0);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

  // The run that has taken the folder over since: "process 4711 on node7, since ...". That happens after a long stop of
  // this run, or when somebody removed the file. Empty while the folder is this run's.
  std::string taken_by();

 private:
  void renew();
  std::string look() const;

  std::filesystem::path file_;
  std::string text_;  // what it holds while it is this run's
  std::mutex mutex_;  // of the three below
  std::condition_variable wake_;
  bool over_ = false;
  std::string taken_by_;
  std::thread thread_;
};

}  // namespace fulmen
