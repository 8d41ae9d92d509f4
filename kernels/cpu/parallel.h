// Loops over threads. How the work is cut never depends on the number of threads where a sum is formed.
#pragma once

#include <algorithm>
#include <cstdint>

#include <omp.h>

namespace fulmen::cpu {

// Below this many elements a parallel region costs more than it saves.
inline constexpr std::int64_t parallel_threshold = 65536;

// Calls body(first, last) over disjoint ranges covering [0, rows). The body must not throw, and what it computes for a
// row must not depend on the range it came in.
template <class Body>
void parallel_rows(std::int64_t rows, std::int64_t elements_per_row, Body&& body) {
  if (rows <= 0) return;
  const auto useful = std::min<std::int64_t>(rows, rows * elements_per_row / parallel_threshold + 1);
  const int threads = static_cast<int>(std::min<std::int64_t>(omp_get_max_threads(), useful));
  if (threads <= 1) return body(std::int64_t{0}, rows);
#pragma omp parallel num_threads(threads)
  {
    const std::int64_t team = omp_get_num_threads();
    const std::int64_t member = omp_get_thread_num();
    body(rows * member / team, rows * (member + 1) / team);
  }
}

// parallel_rows over flat elements, cut at multiples of 64 so that vectors and cache lines stay whole.
template <class Body>
void parallel_elements(std::int64_t elements, Body&& body) {
  constexpr std::int64_t grain = 64;
  parallel_rows((elements + grain - 1) / grain, grain,
                [&](std::int64_t first, std::int64_t last) { body(first * grain, std::min(last * grain, elements)); });
}

}  // namespace fulmen::cpu
