// fulmen bench kernels: each kernel by itself against its floor.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>

#include <nlohmann/json.hpp>

#include "framework/profiler.h"
#include "framework/random.h"
#include "framework/threads.h"
#include "framework/transfer.h"
#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gated_linear_unit.h"
#include "kernels/gemm.h"
#include "kernels/linear_attention.h"
#include "kernels/norm.h"
#include "launch/bench.h"
#include "launch/bench_report.h"
#include "launch/command_line.h"
#include "model/decay_slopes.h"

namespace fulmen {

namespace {

struct KernelShapes {
  std::int64_t batch, length, hidden, heads, glu, vocabulary;
  std::int64_t tokens() const { return batch * length; }
};

// The tensors that the kernels run on, filled with numbers of the size that training has.
class KernelBench {
 public:
  KernelBench(const KernelShapes& shapes, DType dtype, const Execution& execution)
      : shapes_(shapes), dtype_(dtype), execution_(execution) {}

  void run_all(double seconds_each);
  const std::vector<BenchRow>& rows() const { return rows_; }

 private:
  Tensor make(DType dtype, const Shape& shape);
  Tensor matrix(std::int64_t columns) { return make(dtype_, {shapes_.tokens(), columns}); }
  Tensor statistics() { return make(accumulation_dtype(dtype_), {shapes_.tokens()}); }
  Tensor integers(DType dtype, const Shape& shape, std::int64_t below);
  // Runs `work` for about the given time and keeps the median of its kernels' times.
  void measure(const char* name, const std::function<void()>& work);
  void run_products();
  void run_attention();
  void run_norms();
  void run_loss();
  void run_flat();

  KernelShapes shapes_;
  DType dtype_;
  Execution execution_;
  double seconds_each_ = 0.2;
  std::vector<OwnedTensor> owned_;
  std::vector<BenchRow> rows_;
};

Tensor KernelBench::make(DType dtype, const Shape& shape) {
  owned_.emplace_back(execution_.device, dtype, shape, MemoryKind::workspace, *execution_.ledger);
  const Tensor& tensor = owned_.back().view();
  const RandomStream random(owned_.size(), "bench kernels");
  std::vector<double> values(static_cast<std::size_t>(tensor.elements()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 0.25 * (2.0 * random.uniform(i) - 1.0);
  if (dtype == DType::fp64) {
    copy_to_device(execution_, values.data(), tensor);
  } else {
    const std::vector<float> narrow(values.begin(), values.end());
    copy_to_device(execution_, narrow.data(), tensor);
  }
  return tensor;
}

Tensor KernelBench::integers(DType dtype, const Shape& shape, std::int64_t below) {
  owned_.emplace_back(execution_.device, dtype, shape, MemoryKind::workspace, *execution_.ledger);
  const Tensor& tensor = owned_.back().view();
  const RandomStream random(owned_.size(), "bench kernels");
  std::vector<std::int32_t> values(static_cast<std::size_t>(tensor.elements()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<std::int32_t>(random.bits(i) % static_cast<std::uint64_t>(below));
  FULMEN_CHECK(dtype == DType::int32, "integers are int32");
  copy_to_device(execution_, values.data(), tensor);
  return tensor;
}

void KernelBench::measure(const char* name, const std::function<void()>& work) {
  Profiler& profiler = *execution_.profiler;
  work();
  std::vector<double> seconds;
  BenchRow row;
  row.name = name;
  const auto start = std::chrono::steady_clock::now();
  do {
    profiler.clear();
    work();
    BenchRow once;
    for (const auto& [kernel, entry] : profiler.entries()) {
      once.seconds += entry.seconds;
      once.floor_seconds += entry.floor_seconds;
      once.operations += entry.operations;
      once.bytes += entry.bytes;
    }
    row.floor_seconds = once.floor_seconds;
    row.operations = once.operations;
    row.bytes = once.bytes;
    seconds.push_back(once.seconds);
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds_each_);
  std::ranges::sort(seconds);
  row.seconds = seconds[seconds.size() / 2];
  row.calls = static_cast<std::int64_t>(seconds.size());
  rows_.push_back(row);
}

void KernelBench::run_products() {
  const Tensor x = matrix(shapes_.hidden), y = matrix(4 * shapes_.hidden);
  const Tensor weight = make(dtype_, {4 * shapes_.hidden, shapes_.hidden});
  measure("product forward", [&] { linear_forward(execution_, x, weight, y); });
  measure("product backward input", [&] { linear_backward_input(execution_, y, weight, x); });
  measure("product backward weight", [&] { linear_backward_weight(execution_, y, x, weight); });
}

void KernelBench::run_attention() {
  const std::int64_t width = shapes_.hidden / shapes_.heads;
  const Tensor projection = matrix(4 * shapes_.hidden), d_projection = matrix(4 * shapes_.hidden);
  const Tensor output = matrix(shapes_.hidden), d_output = matrix(shapes_.hidden);
  const auto heads_of = [&](const Tensor& whole, int part) {
    return whole.slice(1, part * shapes_.hidden, (part + 1) * shapes_.hidden).split_dimension(0, shapes_.length).split_dimension(2, width);
  };
  const std::vector<double> slopes = decay_slopes(shapes_.heads, 0, 2);
  owned_.emplace_back(execution_.device, DType::fp64, Shape{shapes_.heads}, MemoryKind::workspace, *execution_.ledger);
  const Tensor slope = owned_.back();
  copy_to_device(execution_, slopes.data(), slope);
  std::vector<std::int64_t> starts;
  for (std::int64_t b = 0; b <= shapes_.batch; ++b) starts.push_back(b * shapes_.length);
  owned_.emplace_back(execution_.device, DType::int64, Shape{shapes_.batch + 1}, MemoryKind::workspace, *execution_.ledger);
  const Tensor segments = owned_.back();
  copy_to_device(execution_, starts.data(), segments);

  LinearAttentionInputs inputs;
  inputs.query = heads_of(projection, 0);
  inputs.key = heads_of(projection, 1);
  inputs.value = heads_of(projection, 2);
  inputs.slope = slope;
  inputs.segments = segments;
  LinearAttentionOutputs outputs;
  outputs.output = heads_of(output, 0);
  outputs.square_sums = make(accumulation_dtype(dtype_), {shapes_.tokens(), shapes_.heads});
  measure("linear attention forward", [&] { linear_attention_forward(execution_, inputs, outputs); });
  LinearAttentionGradients gradients;
  gradients.d_output = heads_of(d_output, 0);
  gradients.d_query = heads_of(d_projection, 0);
  gradients.d_key = heads_of(d_projection, 1);
  gradients.d_value = heads_of(d_projection, 2);
  measure("linear attention backward", [&] { linear_attention_backward(execution_, inputs, gradients); });
}

void KernelBench::run_norms() {
  const Tensor a = matrix(shapes_.hidden), b = matrix(shapes_.hidden), c = matrix(shapes_.hidden), d = matrix(shapes_.hidden);
  const Tensor wide = matrix(2 * shapes_.glu), product = matrix(shapes_.glu), d_wide = matrix(2 * shapes_.glu);
  const Tensor inverse_rms = statistics(), sums = statistics();
  const auto half = [&](const Tensor& whole, int i) { return whole.slice(1, i * shapes_.glu, (i + 1) * shapes_.glu); };
  measure("residual norm forward", [&] { residual_norm_forward(execution_, a, b, 1e-6, c, d, inverse_rms); });
  measure("residual norm backward", [&] { residual_norm_backward(execution_, a, b, inverse_rms, c, d); });
  measure("gated norm forward",
          [&] { gated_norm_forward(execution_, a, inverse_rms, shapes_.hidden, 1e-6, b, Activation::none, c, sums); });
  measure("gated norm backward", [&] {
    gated_norm_backward_dot(execution_, a, b, inverse_rms, c, Activation::none, sums);
    gated_norm_backward(execution_, a, b, inverse_rms, c, Activation::none, sums, shapes_.hidden, d, a);
  });
  measure("gated unit forward", [&] { gated_linear_unit_forward(execution_, half(wide, 0), half(wide, 1), Activation::none, product); });
  measure("gated unit backward", [&] {
    gated_linear_unit_backward(execution_, product, half(wide, 0), half(wide, 1), Activation::none, half(d_wide, 0), half(d_wide, 1));
  });
}

void KernelBench::run_loss() {
  const Tensor logits = matrix(shapes_.vocabulary), maximum = statistics(), exp_sum = statistics(), target = statistics();
  const Tensor targets = integers(DType::int32, {shapes_.tokens()}, shapes_.vocabulary);
  const Tensor weights = make(DType::fp32, {shapes_.tokens()}), scale = make(DType::fp64, {1});
  measure("cross entropy forward",
          [&] { cross_entropy_local(execution_, logits, targets, 0, shapes_.vocabulary, maximum, exp_sum, target); });
  measure("cross entropy backward", [&] {
    cross_entropy_backward(execution_, logits, targets, weights, 0, shapes_.vocabulary, maximum, exp_sum, scale, logits);
  });
  const Tensor embedding = make(dtype_, {shapes_.vocabulary, shapes_.hidden}), x = matrix(shapes_.hidden);
  measure("embedding forward", [&] { embedding_forward(execution_, targets, embedding, 0, 1.0, x); });
  measure("embedding backward", [&] { embedding_backward(execution_, targets, x, 0, 1.0, embedding); });
}

void KernelBench::run_flat() {
  const Shape flat = {shapes_.vocabulary * shapes_.hidden + 8 * shapes_.hidden * (5 * shapes_.hidden + 3 * shapes_.glu)};
  const Tensor p = make(dtype_, flat), g = make(dtype_, flat), m = make(dtype_, flat), v = make(dtype_, flat);
  fill_zero(execution_, v);
  const Tensor scalars = make(DType::fp64, {adamw_scalars}), total = make(DType::fp64, {1});
  const double values[adamw_scalars] = {1e-4, 0.1, 0.05, 1.0};
  copy_to_device(execution_, values, scalars);
  measure("adamw", [&] { adamw_update(execution_, p, g, m, v, scalars, {}); });
  measure("gradient norm", [&] { add_sum_of_squares(execution_, g, total); });
  measure("copy", [&] { copy(execution_, g, p); });
}

void KernelBench::run_all(double seconds_each) {
  seconds_each_ = seconds_each;
  for (void (KernelBench::*part)() : {&KernelBench::run_products, &KernelBench::run_attention, &KernelBench::run_norms,
                                      &KernelBench::run_loss, &KernelBench::run_flat}) {
    (this->*part)();
    owned_.clear();
  }
}

}  // namespace

ExitCode bench_kernels(const std::vector<std::string>& arguments, World& world) {
  CommandLine line("bench kernels [options]",
                   "Times each kernel on warm data and prints its ratio to its floor: the larger of its operations at the\n"
                   "measured rate of products and its bytes at the measured rate of copies. Small tensors that stay in a cache\n"
                   "can be faster than the copy's floor.",
                   "fulmen bench kernels --batch 4 --length 512");
  line.option("batch", "sequences (4)");
  line.option("length", "tokens of each (512)");
  line.option("hidden", "width (512)");
  line.option("heads", "heads (8)");
  line.option("glu", "inner width (1408)");
  line.option("vocabulary", "vocabulary (8192)");
  line.option("precision", "fp32 (default) or fp64");
  line.option("seconds", "for each kernel (0.2)");
  line.flag("json", "print one JSON object");
  if (!line.parse(arguments)) return ExitCode::done;
  if (world.size() > 1) throw UserError("bench kernels", "runs as one process", "start it without mpirun");
  configure_threads({});
  const KernelShapes shapes{line.integer("batch", 4, 1, 1 << 20),   line.integer("length", 512, 1, 1 << 24),
                            line.integer("hidden", 512, 1, 1 << 20), line.integer("heads", 8, 1, 1 << 16),
                            line.integer("glu", 1408, 1, 1 << 22),   line.integer("vocabulary", 8192, 1, 1 << 24)};
  if (shapes.hidden % shapes.heads != 0) throw UserError("--heads", "do not divide --hidden");
  const std::string precision = line.text("precision", "fp32");
  if (precision != "fp32" && precision != "fp64") throw UserError("--precision", "'" + precision + "' is unknown", "use fp32 or fp64");

  ExecutionResources resources(Device::cpu());
  const DType dtype = parse_dtype(precision);
  const DeviceRates rates = measure_rates(resources.execution(), dtype);
  Profiler profiler(rates.gemm_operations_per_second, rates.copy_bytes_per_second);
  resources.set_profiler(&profiler);
  KernelBench bench(shapes, dtype, resources.execution());
  bench.run_all(line.number("seconds", 0.2, 0.0, 100.0));

  double total = 0.0;
  for (const BenchRow& row : bench.rows()) total += row.seconds;
  if (line.has("json")) {
    const nlohmann::ordered_json result = {{"threads", compute_threads()},
                                           {"gemm_flops_per_second", rates.gemm_operations_per_second},
                                           {"copy_bytes_per_second", rates.copy_bytes_per_second},
                                           {"kernels", nlohmann::ordered_json::parse(format_json(bench.rows(), total))}};
    std::printf("%s\n", result.dump().c_str());
    return ExitCode::done;
  }
  std::printf("rates  products %.0f GFLOP/s, copy %.1f GB/s, %d threads\n%s", rates.gemm_operations_per_second * 1e-9,
              rates.copy_bytes_per_second * 1e-9, compute_threads(), format_table(bench.rows(), total).c_str());
  return ExitCode::done;
}

}  // namespace fulmen
