// Tables and JSON of the benchmarks.
#include "launch/bench_report.h"

#include <algorithm>
#include <array>

#include <nlohmann/json.hpp>

#include "framework/gpu.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "launch/bench_measure.h"

namespace fulmen {

namespace {

double gemm_rate(const Execution& execution, DType dtype, std::int64_t m, std::int64_t n, std::int64_t k) {
  BenchTensors tensors(execution);
  const Tensor a = tensors.random(dtype, {m, k}), b = tensors.random(dtype, {n, k});
  const Tensor c = tensors.allocate(dtype, {m, n});
  return 2.0 * static_cast<double>(m * n * k) / best_seconds(execution, [&] { linear_forward(execution, a, b, c); });
}

// The better of the kernel's copy and, on a GPU, the driver's.
double copy_rate(const Execution& execution, DType dtype, std::int64_t bytes) {
  BenchTensors tensors(execution);
  const Shape shape = {bytes / static_cast<std::int64_t>(size_of(dtype))};
  const Tensor from = tensors.random(dtype, shape), to = tensors.allocate(dtype, shape);
  double seconds = best_seconds(execution, [&] { copy(execution, from, to); });
  if (execution.device.kind == DeviceKind::cuda) {
    const auto by_driver = [&] { gpu::copy(execution.stream, to.data(), from.data(), from.bytes()); };
    seconds = std::min(seconds, best_seconds(execution, by_driver));
  }
  return 2.0 * static_cast<double>(from.bytes()) / seconds;
}

}  // namespace

DeviceRates measure_rates(const Execution& execution, DType dtype) {
  Execution quiet = execution;
  quiet.profiler = nullptr;
  DeviceRates rates;
  if (execution.device.kind == DeviceKind::cuda) {
    rates.gemm_operations_per_second = gemm_rate(quiet, dtype, 8192, 8192, 8192);
    rates.copy_bytes_per_second = copy_rate(quiet, dtype, std::int64_t{1} << 30);
    return rates;
  }
  for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{2048, 2048, 512}, {2048, 2816, 512}, {2048, 8192, 512}})
    rates.gemm_operations_per_second = std::max(rates.gemm_operations_per_second, gemm_rate(quiet, dtype, m, n, k));
  // Far larger than any cache.
  const auto element = static_cast<std::int64_t>(size_of(dtype));
  rates.copy_bytes_per_second = copy_rate(quiet, dtype, (std::int64_t{32} << 20) * element);
  return rates;
}

std::string format_table(const std::vector<BenchRow>& rows, double total_seconds) {
  std::size_t name_width = 28;
  for (const BenchRow& row : rows) name_width = std::max(name_width, row.name.size());
  std::string table = fmt::format("{:<{}} {:>7} {:>10} {:>7} {:>10} {:>7} {:>12}\n", "part", name_width, "calls", "ms",
                                  "share", "floor ms", "ratio", "rate");
  for (const BenchRow& row : rows) {
    std::string rate;
    if (row.operations > 0.0 && row.seconds > 0.0)
      rate = fmt::format("{:.0f} GFLOP/s", row.operations / row.seconds * 1e-9);
    else if (row.bytes > 0.0 && row.seconds > 0.0)
      rate = fmt::format("{:.1f} GB/s", row.bytes / row.seconds * 1e-9);
    const bool floor = row.floor_seconds > 0.0;
    table += fmt::format("{:<{}} {:>7} {:>10.3f} {:>6.1f}% {:>10} {:>7} {:>12}\n", row.name, name_width, row.calls,
                         1e3 * row.seconds, 100.0 * row.seconds / total_seconds,
                         floor ? fmt::format("{:.3f}", 1e3 * row.floor_seconds) : "-",
                         floor ? fmt::format("{:.2f}", row.seconds / row.floor_seconds) : "-", rate);
  }
  return table;
}

std::string format_json(const std::vector<BenchRow>& rows, double total_seconds) {
  nlohmann::ordered_json list = nlohmann::json::array();
  for (const BenchRow& row : rows) {
    nlohmann::ordered_json entry = {{"part", row.name},
                                    {"calls", row.calls},
                                    {"seconds", row.seconds},
                                    {"share", row.seconds / total_seconds},
                                    {"operations", row.operations},
                                    {"bytes", row.bytes}};
    if (row.floor_seconds > 0.0) {
      entry["floor_seconds"] = row.floor_seconds;
      entry["ratio"] = row.seconds / row.floor_seconds;
    }
    list.push_back(std::move(entry));
  }
  return list.dump();
}

}  // namespace fulmen
