// How many threads this process may use for arithmetic.
#pragma once

namespace fulmen {

int available_cores();                // cores in this process's affinity mask
int host_cores();                     // cores of the host that are online
void set_compute_threads(int count);  // OpenMP, oneDNN and OpenBLAS
int compute_threads();

}  // namespace fulmen
