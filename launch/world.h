// The ranks of this job. The only place besides test mains that names the world communicator.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "framework/error.h"
#include "parallel/mpi_communicator.h"

namespace fulmen {

class World {
 public:
  World() = default;

  // All ranks: MPI's when a launcher started this process, else a self communicator. Starts MPI when first called.
  Communicator& communicator();
  // This process's rank, before or after communicator().
  int rank() const;
  int size() const;

  // Reports an error once for the whole job, ends all ranks and returns the exit code when this process is alone. A mistake
  // that all ranks see is reported by rank 0: the others wait a moment, and are ended by it before they speak.
  int fail(const Error& error);

 private:
  std::unique_ptr<MpiSession> session_;
  std::unique_ptr<Communicator> communicator_;
};

// Sets the threads of this rank: OMP_NUM_THREADS, else `wanted`, else the host's cores over its ranks, within the affinity
// mask. Warns when the mask is smaller than the share.
void configure_threads(const std::optional<std::int64_t>& wanted);

}  // namespace fulmen
