// Ends a job in which a rank died or stands still, and says which. It is a thread on each rank, which needs neither MPI
// nor the thread of the step.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/flight_recorder.h"

namespace fulmen {

// Where a rank's process is. `started`: clock ticks since the machine's start, which tell a process from a later
// process of the same number.
struct RankPlace {
  std::string host;
  std::int64_t pid = 0, started = 0;
  std::string machine;  // what the number counts in: a start of a machine, and a namespace of processes on it
};
RankPlace own_place();
// Whether the process of a place can be seen from another: hosts of one name may be two machines, or two containers.
bool shares_processes(const RankPlace& a, const RankPlace& b);
// Whether such a process is there and not a zombie; to be asked where it can be seen.
bool process_lives(const RankPlace& place);
// The places of all ranks, in their order. Collective.
std::vector<RankPlace> gather_places(Communicator& ranks);

// While it lives, this rank's flight record is written into a folder that all ranks share:
//  - when an operation has not been completed within the time-out, on all ranks: then the job is ended with exit code
//  1;
//  - when a rank on this host is gone without a word: the same;
//  - on SIGTERM and on a fatal signal.
// The lowest rank that is left says, once, which rank is missing and what it did last.
class Watchdog {
 public:
  // Collective over `ranks`, whose abort() ends the job. A folder from an earlier start is kept in the same place under
  // the name `flight-previous`. `timeout` in seconds, 0 for none. Operations run on the device.
  Watchdog(std::shared_ptr<FlightRecorder> recorder, Communicator& ranks, std::filesystem::path folder, double timeout,
           Device device);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // All is saved: from here on no rank takes the end of another rank for a failure. All know when it returns.
  // Collective.
  void expect_end();
  // All went well: the records are taken away. Collective.
  void finish();
  // This rank failed and says so itself: writes the record and keeps still from now on.
  void rank_failed(const std::string& message);
  // Whether the watchdog is ending the job: then nobody else may report.
  bool ends_the_job() const { return ending_; }

 private:
  void watch();
  void stop();
  void look();
  void record(const std::string& reason, const std::string& detail);
  void on_termination();
  bool comes_to_an_end() const;
  [[noreturn]] void end_job(const std::string& reason, const std::string& why);
  std::vector<int> dead_neighbours(int most = std::numeric_limits<int>::max()) const;
  bool all_recorded(bool here_only) const;
  bool claim_the_word() const;
  void wait_for_turn() const;
  void say(const std::string& why) const;
  void kill_neighbours() const;

  std::shared_ptr<FlightRecorder> recorder_;
  Communicator& ranks_;
  std::filesystem::path folder_;
  double timeout_;
  Device device_;
  std::vector<RankPlace> places_;
  std::vector<int> neighbours_;  // other ranks whose processes can be seen from here
  bool shared_ = false;          // whether all ranks see the same folder
  bool recorded_ = false, terminated_ = false;
  std::chrono::steady_clock::time_point next_look_ = {};
  std::atomic<bool> ending_ = false;
  std::atomic<std::chrono::steady_clock::duration> finished_{};  // when the end was last expected

  std::mutex mutex_;  // of the two below
  std::condition_variable wake_;
  bool over_ = false;
  std::thread thread_;
};

}  // namespace fulmen
