// Tensors and clocks of the benchmarks of kernels.
#include "launch/bench_measure.h"

#include <algorithm>
#include <chrono>
#include <limits>

#include "framework/gpu.h"
#include "framework/random.h"
#include "kernels/elementwise.h"

namespace fulmen {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t block_bytes = std::size_t{1} << 20;
// Clearing this takes a GPU about as long as launching a hundred kernels takes the host.
constexpr std::int64_t ahead_bytes = std::int64_t{1} << 30;
constexpr int calls_at_a_time_on_gpu = 4;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Copies the first `block` elements over the rest, twice as many each time.
void repeat_block(const Execution& execution, const Tensor& flat, std::int64_t block) {
  for (std::int64_t done = block; done < flat.elements(); done *= 2) {
    const std::int64_t more = std::min(done, flat.elements() - done);
    copy(execution, flat.slice(0, 0, more), flat.slice(0, done, done + more));
  }
}

template <class T>
std::vector<T> random_block(std::int64_t elements, std::uint64_t seed) {
  const RandomStream random(seed, "bench kernels");
  std::vector<T> values(static_cast<std::size_t>(elements));
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double value = 0.5 * random.uniform(i) - 0.25;
    if constexpr (std::is_same_v<T, BFloat16>)
      values[i] = to_bfloat16(static_cast<float>(value));
    else
      values[i] = static_cast<T>(value);
  }
  return values;
}

}  // namespace

Tensor BenchTensors::allocate(DType dtype, const Shape& shape) {
  owned_.emplace_back(execution_.device, dtype, shape, MemoryKind::workspace, *execution_.ledger);
  return owned_.back().view();
}

Tensor BenchTensors::random(DType dtype, const Shape& shape) {
  const Tensor tensor = allocate(dtype, shape);
  const Tensor flat = tensor.flatten();
  const std::int64_t block = std::min(flat.elements(), static_cast<std::int64_t>(block_bytes / size_of(dtype)));
  const auto fill = [&]<class T>(T) {
    const std::vector<T> values = random_block<T>(block, owned_.size());
    copy_to_device(execution_, values.data(), flat.slice(0, 0, block));
  };
  dtype == DType::bf16 ? fill(BFloat16{}) : dispatch_fp32_fp64(dtype, fill);
  Execution quiet = execution_;
  quiet.profiler = nullptr;
  repeat_block(quiet, flat, block);
  return tensor;
}

Tensor BenchTensors::integers(const Shape& shape, std::int64_t below) {
  const RandomStream random(owned_.size(), "bench kernels");
  std::vector<std::int32_t> values(static_cast<std::size_t>(elements_of(shape)));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<std::int32_t>(random.bits(i) % static_cast<std::uint64_t>(below));
  return holding(shape, values);
}

KernelTimer::KernelTimer(const Execution& execution, double seconds_each)
    : execution_(execution), seconds_each_(seconds_each), tensors_(execution) {
  FULMEN_CHECK(execution.profiler != nullptr, "kernels are timed by a profiler");
  if (execution.device.kind == DeviceKind::cuda) ahead_ = tensors_.allocate(DType::uint8, {ahead_bytes});
}

BenchRow KernelTimer::time(const std::string& name, const std::function<void()>& work) {
  Profiler& profiler = *execution_.profiler;
  const int calls = execution_.device.kind == DeviceKind::cuda ? calls_at_a_time_on_gpu : 1;
  Execution quiet = execution_;
  quiet.profiler = nullptr;
  work();
  BenchRow row;
  row.name = name;
  std::vector<double> seconds;
  const auto start = Clock::now();
  do {
    profiler.clear();  // on a GPU this waits for what was queued before
    if (ahead_) fill_zero(quiet, ahead_);
    for (int call = 0; call < calls; ++call) work();
    BenchRow sum;
    for (const auto& [kernel, entry] : profiler.entries()) {
      sum.seconds += entry.seconds;
      sum.floor_seconds += entry.floor_seconds;
      sum.operations += entry.operations;
      sum.bytes += entry.bytes;
    }
    seconds.push_back(sum.seconds / calls);
    row.floor_seconds = sum.floor_seconds / calls;
    row.operations = sum.operations / calls;
    row.bytes = sum.bytes / calls;
    row.calls += calls;
  } while (seconds_since(start) < seconds_each_);
  std::ranges::sort(seconds);
  row.seconds = seconds[seconds.size() / 2];
  return row;
}

double best_seconds(const Execution& execution, const std::function<void()>& work) {
  double best = std::numeric_limits<double>::max(), spent = 0.0;
  if (execution.device.kind == DeviceKind::cpu) {
    work();
    while (spent < 0.25) {
      const auto start = Clock::now();
      work();
      const double seconds = seconds_since(start);
      best = std::min(best, seconds);
      spent += seconds;
    }
    return best;
  }
  gpu::Event start(execution.device, true), end(execution.device, true);
  work();
  while (spent < 0.25) {
    start.record(execution.stream);
    work();
    end.record(execution.stream);
    end.synchronize();
    const double seconds = end.seconds_since(start);
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

}  // namespace fulmen
