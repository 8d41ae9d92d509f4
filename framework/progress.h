// A progress bar on a terminal (or where FULMEN_PROGRESS=bar says that mpirun leads to a terminal), a plain line now
// and then otherwise. Writes to standard error.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fulmen {

class Progress {
 public:
  // `total` of 0: unknown. A silent one (ranks other than 0) prints nothing.
  Progress(std::string title, std::int64_t total, bool silent = false);
  ~Progress();
  // Shows `done` of the total, the time left, and `detail` (such as "loss 5.12  8,120 tokens/s").
  void update(std::int64_t done, const std::string& detail = {});
  // Shows where it ended. The destructor does so too.
  void finish();

 private:
  void show();

  std::string title_, detail_;
  std::int64_t total_, first_ = -1, done_ = -1, shown_ = -1;
  bool silent_, terminal_, finished_ = false;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace fulmen
