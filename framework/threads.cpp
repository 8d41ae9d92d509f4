// Cores from the operating system; thread counts to OpenMP (which oneDNN uses too) and OpenBLAS.
#include "framework/threads.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include <cblas.h>
#include <omp.h>

#include "framework/error.h"

namespace fulmen {

int available_cores() {
  // The kernel refuses a mask smaller than its own with EINVAL.
  for (int cores = 1024; cores <= (1 << 20); cores *= 2) {
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> mask(CPU_ALLOC(cores), [](cpu_set_t* m) { CPU_FREE(m); });
    FULMEN_CHECK(mask != nullptr, "no memory for an affinity mask");
    const std::size_t bytes = CPU_ALLOC_SIZE(cores);
    if (sched_getaffinity(0, bytes, mask.get()) == 0) return std::max(1, CPU_COUNT_S(bytes, mask.get()));
    if (errno != EINVAL) break;
  }
  throw_system_error("cannot read the affinity mask");
}

int host_cores() {
  const long cores = sysconf(_SC_NPROCESSORS_ONLN);
  if (cores < 1) throw_system_error("cannot count the cores of this host");
  return static_cast<int>(cores);
}

void set_compute_threads(int count) {
  FULMEN_CHECK(count >= 1, "{} compute threads", count);
  omp_set_num_threads(count);
  openblas_set_num_threads(count);
}

int compute_threads() { return omp_get_max_threads(); }

}  // namespace fulmen
