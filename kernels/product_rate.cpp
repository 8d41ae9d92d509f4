// Times products of square matrices.
#include "kernels/product_rate.h"

#include <chrono>
#include <vector>

#include "framework/gpu.h"
#include "framework/random.h"
#include "framework/transfer.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace fulmen {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// A GPU multiplies zeros faster than numbers: it draws less power.
void fill_normal(const Execution& execution, const Tensor& matrix) {
  const RandomStream random(1, "peak");
  const std::int64_t rows = matrix.size(0), columns = matrix.size(1);
  std::vector<float> row(static_cast<std::size_t>(columns));
  for (std::size_t i = 0; i < row.size(); ++i) row[i] = static_cast<float>(random.normal(i));
  const Arena::Frame frame(*execution.scratch);
  const Tensor narrow = execution.scratch->take(DType::fp32, {1, columns});
  copy_to_device(execution, row.data(), narrow);
  for (std::int64_t r = 0; r < rows; ++r) copy(execution, narrow, matrix.slice(0, r, r + 1));
}

}  // namespace

std::int64_t rate_matrix_order(Device device) { return device.kind == DeviceKind::cuda ? 4096 : 512; }

double measure_product_rate(const Execution& execution, DType dtype, const std::function<void()>& ready) {
  const std::int64_t order = rate_matrix_order(execution.device);
  const auto matrix = [&] {
    return OwnedTensor(execution.device, dtype, {order, order}, MemoryKind::workspace, *execution.ledger);
  };
  const OwnedTensor a = matrix(), b = matrix(), c = matrix();
  fill_normal(execution, a);
  fill_normal(execution, b);
  const auto multiply = [&](int products) {
    for (int i = 0; i < products; ++i) gemm(execution, a, b, c);
    if (execution.device.kind == DeviceKind::cuda) gpu::synchronize(execution.stream);
  };
  multiply(1);
  ready();
  const auto start = Clock::now();
  const int at_a_time = execution.device.kind == DeviceKind::cuda ? 10 : 1;
  int products = 0;
  for (; seconds_since(start) < 0.1; products += at_a_time) multiply(at_a_time);
  const auto n = static_cast<double>(order);
  return 2.0 * n * n * n * products / seconds_since(start);
}

}  // namespace fulmen
