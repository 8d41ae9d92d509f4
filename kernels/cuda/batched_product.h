// Many small matrix products of one shape at a time, through cuBLAS, in the full precision of fp32 or fp64.
#pragma once

#include <mutex>

#include "framework/execution.h"

namespace fulmen::cuda {

// Contiguous row-major matrices [rows, columns], one behind the other.
template <class A>
struct BatchedMatrix {
  const A* data;
  int rows, columns;
  bool transposed = false;  // enters the product as [columns, rows]

  BatchedMatrix transpose() const { return {data, rows, columns, !transposed}; }
};

// A right to the device's cuBLAS handle, on the execution's stream. Others wait while it lasts. cuBLAS works in memory
// of the scratch arena, which must belong to a frame of the caller's.
class BatchedProducts {
 public:
  explicit BatchedProducts(const Execution& execution);

  // c[i] = a[i] b[i], or c[i] += a[i] b[i], for i < batch. A is float or double; fp32 does not pass through TF32.
  template <class A>
  void multiply(const BatchedMatrix<A>& a, const BatchedMatrix<A>& b, A* c, std::int64_t batch, bool add = false) const;

 private:
  std::unique_lock<std::mutex> lock_;
  void* handle_;
};

}  // namespace fulmen::cuda
