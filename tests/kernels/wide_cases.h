// Shapes at which a kernel's paths part. Rows that vectors divide or do not, rows too wide for registers, slices that
// begin between two vectors. Also more rows than a grid has in its second dimension.
#pragma once

#include "tests/kernels/kernel_test.h"

namespace fulmen::testing {

inline constexpr std::int64_t wide_widths[] = {1, 7, 8, 64, 100, 1024, 2048, 4096, 5632, 10000};
// Columns before a slice: none, an odd number, a whole number of vectors. 0 is the whole matrix, contiguous.
inline constexpr std::int64_t slice_offsets[] = {0, 1, 8};
inline constexpr std::int64_t many_rows = 70000;

// A matrix as part of a matrix that is wider by 16 columns of NaN, or the whole when offset is 0.
struct Sliced {
  Tensor whole, part;

  Sliced(Host& host, DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t offset)
      : whole(host.poisoned(dtype, {rows, offset == 0 ? columns : columns + 16})),
        part(whole.slice(1, offset, offset + columns)) {}
  Sliced(Host& host, DType dtype, std::int64_t columns, std::int64_t offset, const Values& values)
      : Sliced(host, dtype, static_cast<std::int64_t>(values.size()) / columns, columns, offset) {
    write(part, values);
  }
  operator const Tensor&() const { return part; }  // NOLINT: it stands for its part

  // Nothing was written outside the part, whose own values are all numbers.
  void expect_margins_untouched() const {
    std::int64_t poisoned = 0;
    for (const double value : read(whole)) poisoned += std::isnan(value);
    EXPECT_EQ(poisoned, whole.elements() - part.elements());
  }
};

// Rows for a width: few where they are wide, so that a test stays short.
inline std::int64_t rows_for(std::int64_t width) { return width >= 1024 ? 3 : 37; }

}  // namespace fulmen::testing
