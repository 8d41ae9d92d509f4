// fulmen bench step: the rate of a training step, and where its time goes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <optional>

#include <nlohmann/json.hpp>

#include "framework/files.h"
#include "framework/gpu.h"
#include "framework/profiler.h"
#include "framework/random.h"
#include "framework/text.h"
#include "framework/threads.h"
#include "framework/timeline.h"
#include "launch/bench.h"
#include "launch/bench_report.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"
#include "train/metrics.h"
#include "train/model_runner.h"
#include "train/optimizer.h"
#include "train/trainer.h"
#include "train/training_state.h"

namespace fulmen {

namespace {

// The model of the comparison with PyTorch in bench/: 32 M parameters.
constexpr const char* default_configuration =
    "model: {layers: 8, hidden: 512, heads: 8, glu: 1408, vocabulary: 8192, lrpe_layers: []}\n"
    "data: {path: none, sequence_length: 512}\n"
    "train: {steps: 1, global_batch: 4, micro_batch: 4}\n";

// Of this rank's slice of every sample.
std::vector<Batch> random_batches(const ModelRunnerOptions& options, std::int64_t vocabulary, const Mesh& mesh) {
  const RandomStream random(static_cast<std::uint64_t>(mesh.coordinate(Axis::data)), "bench");
  const std::int64_t sample_length = options.micro_batch.length;
  const IndexRange slice = sequence_slice(sample_length, mesh.size(Axis::sequence), mesh.coordinate(Axis::sequence));
  std::vector<Batch> batches;
  std::uint64_t next = 0;
  for (int m = 0; m < options.micro_batches; ++m) {
    const BatchShape shape = {options.micro_batch.batch, slice.size()};
    Batch batch = make_batch(shape.batch, sample_length, slice.begin, slice.end);
    batch.segments.clear();
    for (std::int64_t i = 0; i < shape.tokens(); ++i) {
      const auto place = static_cast<std::size_t>(i);
      batch.tokens[place] = static_cast<std::int32_t>(random.bits(next++) % static_cast<std::uint64_t>(vocabulary));
      batch.targets[place] = static_cast<std::int32_t>(random.bits(next++) % static_cast<std::uint64_t>(vocabulary));
      batch.weights[place] = 1.0f;
      batch.positions[place] = slice.begin + i % shape.length;
      if (i % shape.length == 0) batch.segments.push_back(i);
    }
    batch.segments.push_back(shape.tokens());
    batch.order = stable_order(batch.tokens);
    batches.push_back(std::move(batch));
  }
  return batches;
}

double median_of(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// The resources of a benchmark, and a model of random weights on them that takes steps.
class Steps {
 public:
  // A profiler that is not null is told what kernels take.
  Steps(const TrainerOptions& options, Mesh& mesh, Device device, Profiler* profiler, ExecutionResources& resources)
      : mesh_(mesh), device_(device), resources_(reporting_to(resources, profiler)) {
    const ModelRunnerOptions model_options = runner_options(options, mesh.shape());
    runner_.emplace(options.model, model_options, mesh, resources_.execution());
    optimizer_.emplace(options.train.optimizer, options.train.clip, runner_->parameters(), mesh,
                       resources_.execution());
    initialize_training_state(1, *runner_, *optimizer_);
    mesh.world().report_to(profiler);
    batches_ = random_batches(model_options, options.model.vocabulary, mesh);
  }
  ~Steps() {
    mesh_.world().report_to(nullptr);
    resources_.set_profiler(nullptr);
  }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;

  ModelRunner& runner() { return *runner_; }

  // Seconds of each of `count` steps: from all ranks' start to the end of this one's work on its device.
  std::vector<double> run(std::int64_t count) {
    std::vector<double> seconds;
    for (std::int64_t t = 0; t < count; ++t) {
      wait();
      mesh_.world().barrier();
      const auto start = std::chrono::steady_clock::now();
      runner_->accumulate(batches_, [&] { optimizer_->step(1e-4, updates_++); });
      wait();
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return seconds;
  }

 private:
  static ExecutionResources& reporting_to(ExecutionResources& resources, Profiler* profiler) {
    resources.set_profiler(profiler);
    return resources;
  }
  void wait() const {
    if (device_.kind == DeviceKind::cuda) gpu::synchronize(resources_.execution().stream);
  }

  Mesh& mesh_;
  Device device_;
  ExecutionResources& resources_;
  std::optional<ModelRunner> runner_;
  std::optional<Optimizer> optimizer_;
  std::vector<Batch> batches_;
  std::int64_t updates_ = 0;
};

// "812 GFLOP/s", "1.93 TFLOP/s": rates that span what a core and what a GPU can do.
std::string rate_text(double per_second, const char* unit) {
  if (per_second >= 1e12) return fmt::format("{:.2f} T{}/s", per_second * 1e-12, unit);
  return fmt::format("{:.1f} G{}/s", per_second * 1e-9, unit);
}

// Per step. What lies between steps on the device, the host's barrier, counts into none of them.
TimelineSummary summarize_profile(Profiler& profiler, double step_seconds, std::int64_t steps) {
  const std::vector<ProfileInterval>& intervals = profiler.intervals();
  double end = 0.0;
  for (const ProfileInterval& interval : intervals) end = std::max(end, interval.end);
  TimelineSummary summary = summarize_timeline(intervals, 0.0, end);
  const double n = static_cast<double>(steps);
  summary.compute /= n;
  summary.communication /= n;
  summary.exposed_communication /= n;
  summary.span = step_seconds;
  summary.idle = std::max(0.0, step_seconds - summary.compute - summary.exposed_communication);
  return summary;
}

std::string describe_timeline(const TimelineSummary& timeline, bool on_gpu) {
  std::string text = fmt::format("{:.1f} ms: kernels {:.1f}, communication {:.1f} of which exposed {:.2f}, idle {:.2f}",
                                 1e3 * timeline.span, 1e3 * timeline.compute, 1e3 * timeline.communication,
                                 1e3 * timeline.exposed_communication, 1e3 * timeline.idle);
  if (on_gpu) text += " (steps with events around every kernel, which cost some time)";
  return text;
}

// Collective.
void write_trace(const std::string& path, Profiler& profiler, Communicator& ranks) {
  const std::string mine = chrome_trace_events(profiler.intervals(), ranks.rank());
  std::vector<std::string> events;
  for (int rank = 0; rank < ranks.size(); ++rank) events.push_back(ranks.broadcast_text(mine, rank));
  if (ranks.rank() == 0) write_text_atomically(path, chrome_trace(events));
}

// Dense bf16 operations per second as the vendor states them; 0 for other devices and precisions.
double data_sheet_peak(Device device, const Precision& precision) {
  if (device.kind != DeviceKind::cuda || precision.parameters != DType::bf16) return 0.0;
  const std::string name = gpu::properties(device.index).name;
  if (name.find("H100") != std::string::npos || name.find("H200") != std::string::npos) return 989e12;
  return name.find("A100") != std::string::npos ? 312e12 : 0.0;
}

RunConfiguration read_configuration(const CommandLine& line) {
  std::vector<std::string> overrides = {"data.path=none"};
  if (line.has("preset")) overrides.push_back("model.preset=" + line.text("preset"));
  if (line.has("sequence-length")) overrides.push_back("data.sequence_length=" + line.text("sequence-length"));
  if (line.has("micro-batch")) overrides.push_back("train.micro_batch=" + line.text("micro-batch"));
  if (line.has("global-batch"))
    overrides.push_back("train.global_batch=" + line.text("global-batch"));
  else if (line.has("micro-batch"))
    overrides.push_back("train.global_batch=" + line.text("micro-batch"));
  if (line.has("recompute")) overrides.push_back("parallel.recompute=" + line.text("recompute"));
  if (line.has("device")) overrides.push_back("run.device=" + line.text("device"));
  for (const std::string& given : line.texts("set")) overrides.push_back(given);
  if (line.has("config")) return read_run_configuration(line.text("config"), overrides);
  const std::string text = line.has("preset")
                               ? "data: {path: none}\ntrain: {steps: 1, global_batch: 1, micro_batch: 1}\n"
                               : default_configuration;
  return parse_run_configuration(text, "the benchmark's configuration", overrides);
}

}  // namespace

ExitCode bench_step(const std::vector<std::string>& arguments, World& world) {
  CommandLine line(
      "bench step [options]",
      "Times training steps on random tokens. Without a configuration: 8 layers, hidden 512, 8 heads, glu 1408,\n"
      "vocabulary 8192, 4 x 512 tokens, as bench/compare_cpu.py has it. Times are medians over the steps.",
      "fulmen bench step --preset transnormer-385m --micro-batch 1 --sequence-length 2048");
  line.option("config", "a configuration file");
  line.option("preset", "a model preset");
  line.option("micro-batch", "sequences at a time");
  line.option("global-batch", "sequences a step (the micro-batch, if only that is given)");
  line.option("sequence-length", "tokens of a sequence");
  line.option("recompute", "none (default), selective or full: parallel.recompute");
  line.option("device", "auto (default), cpu or cuda: run.device");
  line.option("steps", "steps to time (5), after 2 that are not; on a GPU as many again are profiled");
  line.repeatable("set", "change a key of the configuration");
  line.option("trace", "write the profiled steps of all ranks to this file, in the Chrome trace format");
  line.flag("json", "print one JSON object");
  if (!line.parse(arguments)) return ExitCode::done;

  const RunConfiguration configuration = read_configuration(line);
  const std::int64_t steps = line.integer("steps", 5, 1, 1000);
  const Device device = choose_device(configuration.run.device);
  const TrainerOptions options = configuration.trainer_options(device);
  Communicator& ranks = world.communicator(device, configuration.transport);
  Mesh mesh(mesh_shape(configuration.parallel, ranks.size()), ranks);
  configure_threads(configuration.run.threads);
  if (options.train.global_batch % (mesh.size(Axis::data) * options.train.micro_batch) != 0)
    throw UserError("train.global_batch",
                    fmt::format("{} is not a multiple of data ranks {} x micro_batch {}", options.train.global_batch,
                                mesh.size(Axis::data), options.train.micro_batch));

  ExecutionResources rate_resources(device, configuration.run.deterministic);
  const DeviceRates rates = measure_rates(rate_resources.execution(), options.precision.parameters);

  // On the CPU a clock costs nothing and the timed steps are profiled. On a GPU events between kernels cost time, so
  // that steps are timed without them, and others profiled.
  constexpr std::int64_t warm_up = 2;
  const bool on_gpu = device.kind == DeviceKind::cuda;
  ExecutionResources resources(device, configuration.run.deterministic);
  Profiler profiler(rates.gemm_operations_per_second, rates.copy_bytes_per_second, resources.execution().stream);
  std::vector<double> times, profiled_times;
  std::optional<IdealStep> ideal;  // of a pipeline: of the last step, whose time is compared with it
  {
    Steps timed(options, mesh, device, on_gpu ? nullptr : &profiler, resources);
    const bool pipelined = mesh.size(Axis::pipeline) > 1;
    if (pipelined) timed.runner().executor().time_passes();
    timed.run(warm_up);
    profiler.clear();
    times = timed.run(steps);
    if (pipelined) ideal = timed.runner().ideal_step();
  }
  const std::size_t peak_bytes = resources.ledger().peak_total();
  const std::string memory = resources.ledger().breakdown();
  if (on_gpu) {
    Steps profiled(options, mesh, device, &profiler, resources);
    profiled.run(warm_up);
    ranks.barrier();
    profiler.clear();
    profiled_times = profiled.run(steps);
  } else {
    profiled_times = times;
  }
  const double seconds = median_of(times), profiled_seconds = mean_of(profiled_times);
  const TimelineSummary timeline = summarize_profile(profiler, profiled_seconds, steps);
  if (line.has("trace")) write_trace(line.text("trace"), profiler, ranks);
  const double tokens = static_cast<double>(options.train.global_batch * options.data.sequence_length);
  const double flops = training_flops_per_token(options.model) * tokens / seconds;
  // A machine's speed drifts: the products are measured again after the steps, and the better rate counts.
  const double best_rate =
      std::max(rates.gemm_operations_per_second,
               measure_rates(rate_resources.execution(), options.precision.parameters).gemm_operations_per_second);
  const double gemm_rate = ranks.all_reduce(best_rate, ReduceOp::sum);
  if (ranks.rank() != 0) return ExitCode::done;
  const double peak = data_sheet_peak(device, options.precision) * ranks.size();

  std::vector<BenchRow> rows;
  for (const auto& [name, entry] : profiler.entries()) {
    const double n = static_cast<double>(steps);
    rows.push_back(
        {name, entry.calls / steps, entry.seconds / n, entry.floor_seconds / n, entry.operations / n, entry.bytes / n});
  }
  std::ranges::sort(rows, [](const BenchRow& a, const BenchRow& b) { return a.seconds > b.seconds; });
  rows.push_back({on_gpu ? "idle" : "host and idle", 0, timeline.idle, 0.0, 0.0, 0.0});

  if (line.has("json")) {
    nlohmann::ordered_json result = {
        {"parameters", parameter_count(options.model)},
        {"layout", mesh.shape().describe()},
        {"device", describe_device(device)},
        {"precision", describe_precision(options.precision)},
        {"threads_per_rank", compute_threads()},
        {"tokens_per_step", tokens},
        {"step_seconds", seconds},
        {"tokens_per_second", tokens / seconds},
        {"model_flops_per_second", flops},
        {"gemm_flops_per_second", gemm_rate},
        {"utilisation", flops / gemm_rate},
        {"data_sheet_utilisation", peak > 0.0 ? nlohmann::ordered_json(flops / peak) : nullptr},
        {"copy_bytes_per_second", rates.copy_bytes_per_second},
        {"memory_peak_bytes", peak_bytes},
        {"profiled_step_seconds", profiled_seconds},
        {"compute_seconds", timeline.compute},
        {"communication_seconds", timeline.communication},
        {"exposed_communication_seconds", timeline.exposed_communication},
        {"idle_seconds", timeline.idle},
        {"ideal_step_seconds", ideal ? nlohmann::ordered_json(ideal->seconds) : nullptr},
        {"ideal_bubble", ideal ? nlohmann::ordered_json(ideal->bubble) : nullptr},
        {"parts", nlohmann::ordered_json::parse(format_json(rows, profiled_seconds))}};
    std::printf("%s\n", result.dump().c_str());
    return ExitCode::done;
  }
  std::printf("model        %s parameters; %s; %lld tokens a step\n",
              human_count(static_cast<double>(parameter_count(options.model))).c_str(), mesh.shape().describe().c_str(),
              static_cast<long long>(tokens));
  std::printf("device       %s a rank; %s\n", describe_device(device).c_str(),
              describe_precision(options.precision).c_str());
  std::printf("rates        products %s, copy %s, measured at the start on rank 0\n",
              rate_text(rates.gemm_operations_per_second, "FLOP").c_str(),
              rate_text(rates.copy_bytes_per_second, "B").c_str());
  std::printf("%s", format_table(rows, profiled_seconds).c_str());
  std::printf("timeline     %s\n", describe_timeline(timeline, on_gpu).c_str());
  std::printf("step         %.4f s (median of %lld), %.0f tokens/s, %s = %.1f %% of the products' rate\n", seconds,
              static_cast<long long>(steps), tokens / seconds, rate_text(flops, "FLOP").c_str(),
              100.0 * flops / gemm_rate);
  if (peak > 0.0)
    std::printf("             %.1f %% of %s, the data sheet's dense bf16\n", 100.0 * flops / peak,
                rate_text(peak, "FLOP").c_str());
  std::printf(
      "             (6 x parameters without the input embedding's look-up + 12 x layers x hidden x head width "
      "operations a token)\n");
  if (ideal)
    std::printf(
        "pipeline     schedule %s, %lld micro-batches: with passes as measured and transfers for nothing, a step of "
        "%.4f s, bubble %.1f %%;\n"
        "             the step is %.1f %% above\n",
        options.layout.schedule.c_str(),
        static_cast<long long>(options.train.global_batch / options.train.micro_batch / mesh.size(Axis::data)),
        ideal->seconds, 100.0 * ideal->bubble, 100.0 * (seconds / ideal->seconds - 1.0));
  std::printf("memory       %s at the peak\n%s", human_bytes(static_cast<double>(peak_bytes)).c_str(), memory.c_str());
  return ExitCode::done;
}

}  // namespace fulmen
