// Tools for the benchmarks of kernels: tensors full of numbers, and the time of a call on the CPU or a GPU.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "framework/execution.h"
#include "framework/transfer.h"
#include "launch/bench_report.h"

namespace fulmen {

// Tensors that live until they are cleared together.
class BenchTensors {
 public:
  explicit BenchTensors(const Execution& execution) : execution_(execution) {}

  // Random numbers in [-0.25, 0.25), the size that training has; one mebibyte of them, repeated. Zeros would let a GPU
  // run at clocks that it does not reach on real data. fp64, fp32 or bf16.
  Tensor random(DType dtype, const Shape& shape);
  // int32, in [0, below).
  Tensor integers(const Shape& shape, std::int64_t below);
  template <class T>
  Tensor holding(const Shape& shape, const std::vector<T>& values) {
    const Tensor tensor = allocate(dtype_of<T>, shape);
    FULMEN_CHECK(static_cast<std::size_t>(tensor.elements()) == values.size(), "{} values for {}", values.size(),
                 tensor.describe());
    copy_to_device(execution_, values.data(), tensor);
    return tensor;
  }
  // Zeros.
  Tensor allocate(DType dtype, const Shape& shape);
  void clear() { owned_.clear(); }

 private:
  Execution execution_;
  std::deque<OwnedTensor> owned_;
};

// Times calls by the profiler of an execution.
class KernelTimer {
 public:
  // `seconds_each`: how long each measurement repeats its work, at the least.
  KernelTimer(const Execution& execution, double seconds_each);

  // The median over repeats of the time that the kernels of `work` take, after one call that does not count. On a GPU
  // the kernels of a few calls are queued behind a pass over memory. So none waits for the host to launch it. The
  // median is over the means of such a few. Data stays where the previous call left it: what fits the caches is read
  // from there.
  BenchRow time(const std::string& name, const std::function<void()>& work);

 private:
  Execution execution_;
  double seconds_each_;
  BenchTensors tensors_;
  Tensor ahead_;  // on a GPU: memory whose clearing keeps it busy while calls are queued
};

// The least time of a call over a quarter of a second, after a call that does not count. So a passing disturbance does
// not count either. Seconds.
double best_seconds(const Execution& execution, const std::function<void()>& work);

}  // namespace fulmen
