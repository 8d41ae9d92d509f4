// The output of the benchmarks: a table for people, JSON for machines.
#pragma once

#include <string>
#include <vector>

#include "framework/execution.h"

namespace fulmen {

// Rates of this process's device, measured now: on a GPU by a product of 8192 x 8192 x 8192 and a copy of 1 GiB.
struct DeviceRates {
  double gemm_operations_per_second = 0.0;  // the best of the shapes tried
  double copy_bytes_per_second = 0.0;       // read plus written
};
DeviceRates measure_rates(const Execution& execution, DType dtype);

struct BenchRow {
  std::string name;
  std::int64_t calls = 0;
  double seconds = 0.0;        // per step or per call
  double floor_seconds = 0.0;  // 0: none is known
  double operations = 0.0, bytes = 0.0;
};

// Columns: part, calls, ms, share of the total, floor, time over floor, GFLOP/s or GB/s.
std::string format_table(const std::vector<BenchRow>& rows, double total_seconds);
// The rows as a JSON array.
std::string format_json(const std::vector<BenchRow>& rows, double total_seconds);

}  // namespace fulmen
