// The ranks of this job and their devices. Only this file and test mains name the world communicator.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "framework/error.h"
#include "framework/phase_times.h"
#include "launch/watchdog.h"
#include "parallel/flight_recorder.h"
#include "parallel/mpi_communicator.h"

namespace fulmen {

class World {
 public:
  World() = default;

  // All ranks: MPI's when a launcher started this process, else a self communicator. Starts MPI when first called. It
  // moves host memory. Throws UserError when MPI and the launcher do not agree about the number of ranks.
  Communicator& communicator();
  // The same ranks for tensors on `device` (and host memory): communicator() itself on the CPU. On GPUs over NCCL or
  // staged through the host, as `transport` says: auto, nccl or host. auto is NCCL where every rank has a GPU of its
  // own. Collective; called once. Throws UserError on all ranks when they chose different kinds of devices, or NCCL for
  // GPUs that are shared.
  Communicator& communicator(Device device, const std::string& transport);
  // This process's rank, before or after communicator().
  int rank() const;
  int size() const;

  // From now on operations are entered for check_order(), too. Before communicator().
  void keep_order() { keeps_order_ = true; }
  // Compares the order of operations of all ranks since the last time. Collective. Throws InternalError where it
  // differs.
  void check_order();
  // From now on a rank that dies or stands still ends the job (see Watchdog), its records in `folder`. Collective.
  void watch(const std::filesystem::path& folder, double timeout, Device device);
  // All is saved, and what becomes of the ranks is no failure any more. Collective.
  void expect_end();
  // The run has come to its end. Collective.
  void stop_watching();
  // How long the phases of the start took on this rank.
  PhaseTimes& start_up();

  // Reports an error once for the whole job, ends all ranks and returns the exit code when this process is alone. A
  // mistake that all ranks see is reported by rank 0: the others wait a moment, and are ended by it before they speak.
  int fail(const Error& error);

 private:
  std::unique_ptr<Communicator> all_ranks() const;  // one more, which does not record

  bool keeps_order_ = false;
  PhaseTimes start_up_;
  std::unique_ptr<MpiSession> session_;
  std::shared_ptr<FlightRecorder> recorder_;
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<Communicator> device_communicator_;
  std::unique_ptr<Communicator> order_communicator_;
  std::unique_ptr<Watchdog> watchdog_;
};

// The device of this rank: `wish` is auto (a GPU if there is any), cpu or cuda. A rank gets the GPU of its number on
// its node, in turns where there are fewer. Throws UserError naming `key` when no GPU is to be had.
Device choose_device(const std::string& wish, const std::string& key = "run.device");
// "GPU 0, NVIDIA H200" or "CPU, 16 threads".
std::string describe_device(Device device);

// Sets the threads of this rank: OMP_NUM_THREADS, else `wanted`, else the host's cores over its ranks, within the
// affinity mask. Warns when the mask is smaller than the share.
void configure_threads(const std::optional<std::int64_t>& wanted);

}  // namespace fulmen
