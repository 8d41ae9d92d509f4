// The flight recorder: for each communicator a ring of its last operations, kept always. It is written, a file for each
// rank, when a run hangs, fails or is killed. The format is in docs/formats.md; flight_report.h reads a folder of them.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "framework/gpu.h"
#include "parallel/communicator.h"

namespace fulmen {

enum class FlightOperation : std::uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  broadcast,
  exchange,
  barrier,
  subgroup,
  connect
};
std::string_view name_of(FlightOperation operation);
std::string_view name_of(ReduceOp op);

// Where an operation stands. The step's thread is inside it; it was started, not waited for; it lies in a GPU's stream;
// it is over; it threw.
enum class FlightState : std::uint8_t { waiting, started, enqueued, done, failed };
std::string_view name_of(FlightState state);

struct FlightTransfer {
  bool send = false;
  int peer = 0;  // rank of the job
  std::uint64_t bytes = 0;
  std::uint64_t number = 0;  // of the transfers that way between the two ranks on this communicator; from 1
};

struct FlightEntry {
  std::uint64_t sequence = 0;    // of all operations of this rank on the communicator; from 1
  std::uint64_t collective = 0;  // of the collectives, the same on all ranks; 0: an exchange, or making a subgroup
  FlightOperation operation = FlightOperation::barrier;
  FlightState state = FlightState::waiting;
  DType dtype = DType::uint8;
  ReduceOp reduce = ReduceOp::sum;
  int root = -1;            // of a broadcast: rank of the job
  std::uint64_t bytes = 0;  // of the largest tensor of a collective, or of all transfers together
  std::vector<FlightTransfer> transfers;
  double entered = 0.0, completed = 0.0;  // seconds since the recorder's start; 0: not completed
  double blocked_since = 0.0;             // since when it keeps the caller, or a stream, waiting
};

// The operations of one communicator since the last comparison of orders, for run.check_collectives.
struct CollectiveOrder {
  struct Stream {
    std::uint64_t count = 0, hash = 0;
    std::uint64_t first = 0;              // number of the first of `operations`, less one
    std::vector<std::string> operations;  // since the last comparison
  };
  Stream collectives;
  std::map<std::pair<int, int>, Stream> transfers;  // by sending and receiving rank
};

// The ring of one communicator. Entries are made by the thread of the step and read by others.
class FlightRing {
 public:
  static constexpr std::size_t capacity = 256;

  // `ranks` are the members' ranks in the job, in the communicator's order; `communicator` outlives the ring's place in
  // the recorder. Times count from `start`.
  FlightRing(std::string name, std::vector<int> ranks, Communicator& communicator,
             std::chrono::steady_clock::time_point start, bool check_order);

  // Begins an operation; the result names it in the calls that follow. Sequence, collective and transfer numbers and
  // times are filled in.
  std::uint64_t enter(FlightEntry entry);
  // It is over; or, on a GPU, in the stream, and over when the stream gets there.
  void leave(std::uint64_t sequence, Stream stream);
  void started(std::uint64_t sequence);  // its start_ call has returned
  void waits(std::uint64_t sequence);    // and now it is waited for
  void fails(std::uint64_t sequence);

  void set_name(const std::string& name);
  std::string name() const;
  const std::vector<int>& ranks() const { return ranks_; }
  Communicator& communicator() const { return communicator_; }

  struct Snapshot {
    std::string name;
    std::vector<int> ranks;
    std::uint64_t operations = 0, collectives = 0;
    std::map<int, std::uint64_t> sent, received;  // transfers so far by peer, also unfinished
    std::vector<FlightEntry> entries;             // oldest first
  };
  // Looks which operations on GPUs are over by now.
  Snapshot snapshot();
  // When an operation that keeps something waiting began to do so, the earliest of them, and when the last operation
  // was completed.
  struct Progress {
    std::optional<double> blocked_since;
    double last_completed = 0.0;
  };
  Progress progress();
  // The order so far; the lists of operations begin anew.
  CollectiveOrder take_order();

 private:
  struct Slot {
    FlightEntry entry;
    gpu::Event passed;  // made when first needed; of an enqueued operation
  };

  double now() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  Slot* find(std::uint64_t sequence);
  void complete(FlightEntry& entry);
  void look_at(Slot& slot);
  void look_at_streams();
  void add_to_order(const FlightEntry& entry);

  mutable std::mutex mutex_;
  std::string name_;
  const std::vector<int> ranks_;
  Communicator& communicator_;
  const std::chrono::steady_clock::time_point start_;
  const bool check_order_;
  std::vector<Slot> slots_;  // by sequence modulo the capacity
  std::uint64_t operations_ = 0, collectives_ = 0;
  std::uint64_t first_open_ = 1;  // no earlier operation is enqueued
  std::map<int, std::uint64_t> sent_, received_;
  double last_completed_ = 0.0;
  CollectiveOrder order_;
};

// The rings of one rank.
class FlightRecorder {
 public:
  // `check_order`: the rings also keep what check_collective_order compares.
  FlightRecorder(int rank, int ranks, bool check_order = false);

  int rank() const { return rank_; }
  int ranks() const { return ranks_; }
  bool checks_order() const { return check_order_; }

  std::shared_ptr<FlightRing> add(std::string name, std::vector<int> ranks, Communicator& communicator);
  void remove(const FlightRing& ring);
  std::vector<std::shared_ptr<FlightRing>> rings() const;

  // Seconds since an operation began to keep this rank waiting and none was completed; 0 when none does.
  double blocked_seconds() const;
  // Ends what waits on GPUs for other ranks, over all communicators. From any thread.
  void cancel();

  // The record as JSON. `reason` is one word: timeout, asked, terminated, signal, failure, found; `detail` more.
  std::string dump(const std::string& reason, const std::string& detail) const;
  // Into `folder`/rank-00003.json. Throws UserError when it cannot be written.
  void write(const std::filesystem::path& folder, const std::string& reason, const std::string& detail) const;

  // Seconds spent making communicators so far.
  double creation_seconds() const { return creation_seconds_; }
  void add_creation_seconds(double seconds) { creation_seconds_ += seconds; }

 private:
  int rank_, ranks_;
  bool check_order_;
  std::chrono::steady_clock::time_point start_;
  double start_time_;  // the same in seconds since 1970
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<FlightRing>> rings_;
  double creation_seconds_ = 0.0;
};

std::filesystem::path flight_file(const std::filesystem::path& folder, int rank);

}  // namespace fulmen
