// fulmen bench step: the rate of a training step, and where its time goes.
#include <algorithm>
#include <chrono>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "framework/profiler.h"
#include "framework/random.h"
#include "framework/text.h"
#include "framework/threads.h"
#include "launch/bench.h"
#include "launch/bench_report.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"
#include "train/metrics.h"
#include "train/model_runner.h"
#include "train/optimizer.h"
#include "train/trainer.h"

namespace fulmen {

namespace {

// The model of the comparison with PyTorch in bench/: 32 M parameters.
constexpr const char* default_configuration =
    "model: {layers: 8, hidden: 512, heads: 8, glu: 1408, vocabulary: 8192, lrpe_layers: []}\n"
    "data: {path: none, sequence_length: 512}\n"
    "train: {steps: 1, global_batch: 4, micro_batch: 4}\n";

std::vector<Batch> random_batches(const ModelRunnerOptions& options, std::int64_t vocabulary, int rank) {
  const RandomStream random(static_cast<std::uint64_t>(rank), "bench");
  std::vector<Batch> batches;
  std::uint64_t next = 0;
  for (int m = 0; m < options.micro_batches; ++m) {
    const BatchShape shape = options.micro_batch;
    Batch batch = make_batch(shape.batch, shape.length);
    batch.segments.clear();
    for (std::int64_t i = 0; i < shape.tokens(); ++i) {
      const auto place = static_cast<std::size_t>(i);
      batch.tokens[place] = static_cast<std::int32_t>(random.bits(next++) % static_cast<std::uint64_t>(vocabulary));
      batch.targets[place] = static_cast<std::int32_t>(random.bits(next++) % static_cast<std::uint64_t>(vocabulary));
      batch.weights[place] = 1.0f;
      batch.positions[place] = i % shape.length;
      if (i % shape.length == 0) batch.segments.push_back(i);
    }
    batch.segments.push_back(shape.tokens());
    batches.push_back(std::move(batch));
  }
  return batches;
}

struct StepTimes {
  std::vector<double> seconds;
  double median() const {
    std::vector<double> sorted = seconds;
    std::ranges::sort(sorted);
    return sorted[sorted.size() / 2];
  }
};

RunConfiguration read_configuration(const CommandLine& line) {
  std::vector<std::string> overrides = {"data.path=none"};
  if (line.has("preset")) overrides.push_back("model.preset=" + line.text("preset"));
  if (line.has("sequence-length")) overrides.push_back("data.sequence_length=" + line.text("sequence-length"));
  if (line.has("micro-batch")) overrides.push_back("train.micro_batch=" + line.text("micro-batch"));
  if (line.has("global-batch")) overrides.push_back("train.global_batch=" + line.text("global-batch"));
  else if (line.has("micro-batch")) overrides.push_back("train.global_batch=" + line.text("micro-batch"));
  for (const std::string& given : line.texts("set")) overrides.push_back(given);
  if (line.has("config")) return read_run_configuration(line.text("config"), overrides);
  const std::string text = line.has("preset") ? "data: {path: none}\ntrain: {steps: 1, global_batch: 1, micro_batch: 1}\n"
                                              : default_configuration;
  return parse_run_configuration(text, "the benchmark's configuration", overrides);
}

}  // namespace

ExitCode bench_step(const std::vector<std::string>& arguments, World& world) {
  CommandLine line("bench step [options]",
                   "Times training steps on random tokens. Without a configuration: 8 layers, hidden 512, 8 heads, glu 1408,\n"
                   "vocabulary 8192, 4 x 512 tokens, as bench/compare_cpu.py has it. Times are medians over the steps.",
                   "fulmen bench step --preset transnormer-385m --micro-batch 1 --sequence-length 2048");
  line.option("config", "a configuration file");
  line.option("preset", "a model preset");
  line.option("micro-batch", "sequences at a time");
  line.option("global-batch", "sequences a step (the micro-batch, if only that is given)");
  line.option("sequence-length", "tokens of a sequence");
  line.option("steps", "steps to time (5), after 2 that are not");
  line.repeatable("set", "change a key of the configuration");
  line.flag("json", "print one JSON object");
  if (!line.parse(arguments)) return ExitCode::done;

  const RunConfiguration configuration = read_configuration(line);
  const std::int64_t steps = line.integer("steps", 5, 1, 1000);
  Communicator& ranks = world.communicator();
  Mesh mesh(mesh_shape(configuration.parallel, ranks.size()), ranks);
  configure_threads(configuration.run.threads);
  TrainerOptions options;
  options.model = configuration.model;
  options.layout = configuration.parallel;
  options.precision = configuration.cpu_precision();
  options.data = configuration.data;
  options.train = configuration.train;
  if (options.train.global_batch % (mesh.size(Axis::data) * options.train.micro_batch) != 0)
    throw UserError("train.global_batch", fmt::format("{} is not a multiple of data ranks {} x micro_batch {}", options.train.global_batch,
                                                      mesh.size(Axis::data), options.train.micro_batch));

  ExecutionResources resources(Device::cpu());
  const DeviceRates rates = measure_rates(resources.execution(), options.precision.parameters);
  Profiler profiler(rates.gemm_operations_per_second, rates.copy_bytes_per_second);
  resources.set_profiler(&profiler);
  const ModelRunnerOptions model_options = runner_options(options, mesh.shape());
  ModelRunner runner(options.model, model_options, mesh, resources.execution());
  runner.parameters().initialize(1, resources.execution());
  Optimizer optimizer(options.train.optimizer, options.train.clip, runner.parameters(), mesh, resources.execution());
  const std::vector<Batch> batches = random_batches(model_options, options.model.vocabulary, mesh.coordinate(Axis::data));

  StepTimes times;
  for (std::int64_t t = -2; t < steps; ++t) {
    if (t == 0) profiler.clear();
    ranks.barrier();
    const auto start = std::chrono::steady_clock::now();
    runner.accumulate(batches, [&] { optimizer.step(1e-4, t + 2); });
    if (t >= 0) times.seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  const double seconds = times.median();
  const double tokens = static_cast<double>(options.train.global_batch * options.data.sequence_length);
  const double flops = training_flops_per_token(options.model) * tokens / seconds;
  // A machine's speed drifts: the products are measured again after the steps, and the better rate counts.
  const double best_rate =
      std::max(rates.gemm_operations_per_second, measure_rates(resources.execution(), options.precision.parameters).gemm_operations_per_second);
  const double gemm_rate = ranks.all_reduce(best_rate, ReduceOp::sum);
  if (ranks.rank() != 0) return ExitCode::done;

  std::vector<BenchRow> rows;
  double profiled = 0.0;
  for (const auto& [name, entry] : profiler.entries()) {
    const double n = static_cast<double>(steps);
    rows.push_back({name, entry.calls / steps, entry.seconds / n, entry.floor_seconds / n, entry.operations / n, entry.bytes / n});
    profiled += entry.seconds / n;
  }
  std::ranges::sort(rows, [](const BenchRow& a, const BenchRow& b) { return a.seconds > b.seconds; });
  double mean = 0.0;
  for (const double s : times.seconds) mean += s / static_cast<double>(steps);
  rows.push_back({"host and idle", 0, std::max(0.0, mean - profiled), 0.0, 0.0, 0.0});

  if (line.has("json")) {
    nlohmann::ordered_json result = {{"parameters", parameter_count(options.model)},
                                     {"layout", mesh.shape().describe()},
                                     {"threads_per_rank", compute_threads()},
                                     {"tokens_per_step", tokens},
                                     {"step_seconds", seconds},
                                     {"tokens_per_second", tokens / seconds},
                                     {"model_flops_per_second", flops},
                                     {"gemm_flops_per_second", gemm_rate},
                                     {"utilisation", flops / gemm_rate},
                                     {"copy_bytes_per_second", rates.copy_bytes_per_second},
                                     {"memory_peak_bytes", resources.ledger().peak_total()},
                                     {"parts", nlohmann::ordered_json::parse(format_json(rows, mean))}};
    std::printf("%s\n", result.dump().c_str());
    return ExitCode::done;
  }
  std::printf("model        %s parameters; %s; %d threads a rank; %lld tokens a step\n",
              human_count(static_cast<double>(parameter_count(options.model))).c_str(), mesh.shape().describe().c_str(),
              compute_threads(), static_cast<long long>(tokens));
  std::printf("rates        products %.0f GFLOP/s, copy %.1f GB/s, measured at the start on rank 0\n",
              rates.gemm_operations_per_second * 1e-9, rates.copy_bytes_per_second * 1e-9);
  std::printf("%s", format_table(rows, mean).c_str());
  std::printf("step         %.3f s (median of %lld), %.0f tokens/s, %.0f GFLOP/s = %.1f %% of the products' rate\n", seconds,
              static_cast<long long>(steps), tokens / seconds, flops * 1e-9, 100.0 * flops / gemm_rate);
  std::printf("             (6 x parameters + 12 x layers x hidden x head width operations a token)\n");
  std::printf("memory       %s at the peak\n%s", human_bytes(static_cast<double>(resources.ledger().peak_total())).c_str(),
              resources.ledger().breakdown().c_str());
  return ExitCode::done;
}

}  // namespace fulmen
