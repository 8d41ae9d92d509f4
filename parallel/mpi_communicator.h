// Communicators over MPI 3.1, for CPU ranks and for the host side of GPU ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "parallel/communicator.h"

namespace fulmen {

// Initialises MPI for the life of this object and finalises it; a process makes at most one. All MPI calls come from
// the thread that made it. It must outlive the handling of errors: finalising waits for all ranks, so when an exception
// leaves its scope the job is aborted instead.
class MpiSession {
 public:
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  // The communicator of all ranks of the job. Only launch/ and test mains ask for it. Operations on more elements than
  // `largest_count` are cut into pieces; by default an fp64 piece has fewer than 2^31 bytes. Collective.
  std::unique_ptr<Communicator> world(std::int64_t largest_count = (std::int64_t{1} << 28) - 1);

  // Whether a launcher (mpirun, srun) started this process among several ranks or at least offers MPI.
  static bool launched();
  // This process's rank, rank count, ranks on its host and number among those. The launcher's environment tells them
  // before MPI starts. Without a launcher they are 0, 1, 1, 0. Throw UserError when a variable is not a number.
  static int environment_rank();
  static int environment_size();
  static int environment_local_size();
  static int environment_local_rank();
  // Cores of this host that a Slurm job was given. Throws likewise.
  static std::optional<int> environment_cores();
};

}  // namespace fulmen
