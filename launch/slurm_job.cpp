// Slurm's variables, taken as text: they are compared, nothing is computed from them.
#include "launch/slurm_job.h"

#include <cstdlib>

namespace fulmen {

SlurmJob slurm_job() {
  const char* id = std::getenv("SLURM_JOB_ID");
  if (id == nullptr || *id == '\0') return {};
  const char* attempt = std::getenv("SLURM_RESTART_COUNT");
  return {id, attempt == nullptr || *attempt == '\0' ? "0" : attempt};
}

}  // namespace fulmen
