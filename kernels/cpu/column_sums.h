// Sums over the rows of a matrix, a value for each column, in an order that no number of threads changes. Blocks of
// rows are summed by themselves, then in their order.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "framework/execution.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {

template <class T>
FULMEN_VECTORIZED void add_row(const T* row, T* total, std::int64_t width) {
#pragma omp simd
  for (std::int64_t j = 0; j < width; ++j) total[j] += row[j];
}

// Calls body(first, last, sums) for blocks of [0, rows) on the threads; it adds the block's rows to `sums`, T
// [totals.size(), width], zero at first. The sums of all blocks are added to the vectors `totals`, T [width]; null
// vectors are passed over.
template <class T, class Body>
void add_column_sums(const Execution& execution, std::int64_t rows, std::int64_t width,
                     std::initializer_list<Tensor> totals, Body&& body) {
  constexpr std::int64_t fewest_rows = 32, most_blocks = 256;
  const std::int64_t of_block = std::max(fewest_rows, (rows + most_blocks - 1) / most_blocks);
  const std::int64_t blocks = (rows + of_block - 1) / of_block;
  const std::int64_t sums_width = static_cast<std::int64_t>(totals.size()) * width;
  Arena::Frame frame(*execution.scratch);
  T* const sums = execution.scratch->take(dtype_of<T>, {blocks, sums_width}).template as<T>();
  if (execution.plans()) return;
  parallel_rows(blocks, of_block * width, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t block = first; block < last; ++block) {
      std::fill_n(sums + block * sums_width, sums_width, T(0));
      body(block * of_block, std::min((block + 1) * of_block, rows), sums + block * sums_width);
    }
  });
  std::int64_t part = 0;
  for (const Tensor& total : totals) {
    const std::int64_t offset = part++ * width;
    if (total.is_null()) continue;
    parallel_elements(width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t block = 0; block < blocks; ++block)
        add_row(sums + block * sums_width + offset + first, total.as<T>() + first, last - first);
    });
  }
}

}  // namespace fulmen::cpu
