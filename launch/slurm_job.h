// Which job of Slurm this process belongs to, as its environment tells.
#pragma once

#include <string>

namespace fulmen {

struct SlurmJob {
  std::string id;       // empty outside Slurm; each task of a job array has its own
  std::string attempt;  // "0", and one more after each requeue
};
SlurmJob slurm_job();

}  // namespace fulmen
