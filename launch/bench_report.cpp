// Tables and JSON of the benchmarks.
#include "launch/bench_report.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>

#include <nlohmann/json.hpp>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace fulmen {

namespace {

// The least time of `work` over at least a quarter of a second, so that a passing disturbance does not count.
template <class F>
double best_seconds(F&& work) {
  double best = std::numeric_limits<double>::max(), spent = 0.0;
  while (spent < 0.25) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    best = std::min(best, seconds);
    spent += seconds;
  }
  return best;
}

double gemm_rate(const Execution& execution, DType dtype, std::int64_t m, std::int64_t n, std::int64_t k) {
  const auto matrix = [&](std::int64_t rows, std::int64_t columns) {
    return OwnedTensor(execution.device, dtype, {rows, columns}, MemoryKind::workspace, *execution.ledger);
  };
  const OwnedTensor a = matrix(m, k), b = matrix(n, k), c = matrix(m, n);
  return 2.0 * static_cast<double>(m * n * k) / best_seconds([&] { linear_forward(execution, a, b, c); });
}

}  // namespace

DeviceRates measure_rates(const Execution& execution, DType dtype) {
  DeviceRates rates;
  for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{2048, 2048, 512}, {2048, 2816, 512}, {2048, 8192, 512}})
    rates.gemm_operations_per_second = std::max(rates.gemm_operations_per_second, gemm_rate(execution, dtype, m, n, k));
  constexpr std::int64_t elements = std::int64_t{32} << 20;   // far larger than any cache
  const OwnedTensor from(execution.device, dtype, {elements}, MemoryKind::workspace, *execution.ledger);
  const OwnedTensor to(execution.device, dtype, {elements}, MemoryKind::workspace, *execution.ledger);
  fill_zero(execution, from);
  rates.copy_bytes_per_second =
      2.0 * static_cast<double>(from.view().bytes()) / best_seconds([&] { copy(execution, from, to); });
  return rates;
}

std::string format_table(const std::vector<BenchRow>& rows, double total_seconds) {
  std::string table = fmt::format("{:<28} {:>7} {:>10} {:>7} {:>10} {:>7} {:>12}\n", "part", "calls", "ms", "share", "floor ms",
                                  "ratio", "rate");
  for (const BenchRow& row : rows) {
    std::string rate;
    if (row.operations > 0.0 && row.seconds > 0.0) rate = fmt::format("{:.0f} GFLOP/s", row.operations / row.seconds * 1e-9);
    else if (row.bytes > 0.0 && row.seconds > 0.0) rate = fmt::format("{:.1f} GB/s", row.bytes / row.seconds * 1e-9);
    const bool floor = row.floor_seconds > 0.0;
    table += fmt::format("{:<28} {:>7} {:>10.3f} {:>6.1f}% {:>10} {:>7} {:>12}\n", row.name, row.calls, 1e3 * row.seconds,
                         100.0 * row.seconds / total_seconds, floor ? fmt::format("{:.3f}", 1e3 * row.floor_seconds) : "-",
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
