// fulmen bench step: the rate of a training step, and where its time goes.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>
#include <optional>

#include <nlohmann/json.hpp>

#include "checkpoint/agreement.h"
#include "framework/files.h"
#include "framework/gpu.h"
#include "framework/pending_output.h"
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
#include "train/preflight.h"
#include "train/trainer.h"
#include "train/training_state.h"

namespace fulmen {

namespace {

// The model of the comparison with PyTorch in bench/: 32 M parameters.
constexpr const char* default_configuration =
    "model: {layers: 8, hidden: 512, heads: 8, glu: 1408, vocabulary: 8192, lrpe_layers: []}\n"
    "data: {path: none, sequence_length: 512}\n"
    "train: {steps: 1, global_batch: 4, micro_batch: 4}\n";

// For this rank's slice of every sample.
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
    runner_.emplace(*options.model, model_options, mesh, resources_.execution());
    optimizer_.emplace(options.train.optimizer, options.train.clip, runner_->parameters(), mesh,
                       resources_.execution());
    initialize_training_state(1, *runner_, *optimizer_);
    mesh.world().report_to(profiler);
    batches_ = random_batches(model_options, options.model->vocabulary, mesh);
  }
  ~Steps() {
    mesh_.world().report_to(nullptr);
    resources_.set_profiler(nullptr);
  }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;

  ModelRunner& runner() { return *runner_; }

  // Seconds of each of `count` steps: from all ranks' start to the end of this rank's work on its device.
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

// Per step. The host's barrier between steps counts into none of them.
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

// Collective; rank 0 has the output.
void write_trace(PendingOutput* output, Profiler& profiler, Communicator& ranks) {
  const std::string mine = chrome_trace_events(profiler.intervals(), ranks.rank());
  std::vector<std::string> events;
  for (int rank = 0; rank < ranks.size(); ++rank) events.push_back(ranks.broadcast_text(mine, rank));
  run_agreed(ranks, [&] {
    if (output == nullptr) return;
    write_text_atomically(output->place(), chrome_trace(events));
    output->complete();
  });
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
  if (line.has("config")) return read_run_configuration(line.path("config"), overrides);
  const std::string text = line.has("preset")
                               ? "data: {path: none}\ntrain: {steps: 1, global_batch: 1, micro_batch: 1}\n"
                               : default_configuration;
  return parse_run_configuration(text, "the benchmark's configuration", overrides);
}

CommandLine command_line() {
  CommandLine line(
      "bench step [options]",
      "Times training steps on random tokens. Without a configuration: 8 layers, hidden 512, 8 heads, glu 1408,\n"
      "vocabulary 8192, 4 x 512 tokens, as bench/compare_cpu.py has it. Times are medians over the steps.",
      "fulmen bench step --preset tnl3-410m --micro-batch 1 --sequence-length 2048");
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
  line.flag("overwrite", overwrite_help);
  line.flag("json", "print one JSON object");
  return line;
}

// The time of the steps on this rank.
struct StepTimes {
  double median = 0.0;             // seconds of a step
  double profiled = 0.0;           // the mean of the steps that the profiler saw
  std::optional<IdealStep> ideal;  // of a pipeline: of the last step, whose time is compared with it
  std::size_t peak_bytes = 0;
  std::string memory;  // what the peak is made of
};

// On the CPU a clock costs nothing and the timed steps are profiled. On a GPU events between kernels cost time, so that
// steps are timed without them, and others profiled.
StepTimes time_steps(const TrainerOptions& options, Mesh& mesh, ExecutionResources& resources, Profiler& profiler,
                     std::int64_t steps) {
  constexpr std::int64_t warm_up = 2;
  const Device device = resources.execution().device;
  const bool on_gpu = device.kind == DeviceKind::cuda;
  StepTimes result;
  std::vector<double> times;
  {
    Steps timed(options, mesh, device, on_gpu ? nullptr : &profiler, resources);
    const bool pipelined = mesh.size(Axis::pipeline) > 1;
    if (pipelined) timed.runner().executor().time_passes();
    timed.run(warm_up);
    profiler.clear();
    times = timed.run(steps);
    if (pipelined) result.ideal = timed.runner().ideal_step();
  }
  result.peak_bytes = resources.ledger().peak_total();
  result.memory = resources.ledger().breakdown();
  result.median = median_of(times);
  if (on_gpu) {
    Steps profiled(options, mesh, device, &profiler, resources);
    profiled.run(warm_up);
    mesh.world().barrier();
    profiler.clear();
    times = profiled.run(steps);
  }
  result.profiled = mean_of(times);
  return result;
}

// Per step, the longest first.
std::vector<BenchRow> profile_rows(Profiler& profiler, std::int64_t steps) {
  std::vector<BenchRow> rows;
  const double n = static_cast<double>(steps);
  for (const auto& [name, entry] : profiler.entries())
    rows.push_back(
        {name, entry.calls / steps, entry.seconds / n, entry.floor_seconds / n, entry.operations / n, entry.bytes / n});
  std::ranges::sort(rows, [](const BenchRow& a, const BenchRow& b) { return a.seconds > b.seconds; });
  return rows;
}

// The report that rank 0 prints.
struct StepReport {
  const TrainerOptions& options;
  Mesh& mesh;
  Device device;
  std::int64_t steps;  // timed
  DeviceRates rates;   // of rank 0, at the start
  StepTimes times;
  TimelineSummary timeline;
  std::vector<BenchRow> rows;
  double gemm_rate;  // of all ranks' products, operations per second

  double tokens() const {  // of a step
    return static_cast<double>(options.train.global_batch * options.data.sequence_length);
  }
  double operation_rate() const {
    return training_flops_per_token(*options.model, options.data.sequence_length) * tokens() / times.median;
  }
  double peak() const { return data_sheet_peak(device, options.precision) * mesh.world().size(); }
};

void print_json(const StepReport& report) {
  using Json = nlohmann::ordered_json;
  const double seconds = report.times.median, peak = report.peak();
  const std::optional<IdealStep>& ideal = report.times.ideal;
  const Json result = {{"parameters", parameter_count(*report.options.model)},
                       {"layout", report.mesh.shape().describe()},
                       {"device", describe_device(report.device)},
                       {"precision", describe_precision(report.options.precision)},
                       {"threads_per_rank", compute_threads()},
                       {"tokens_per_step", report.tokens()},
                       {"step_seconds", seconds},
                       {"tokens_per_second", report.tokens() / seconds},
                       {"model_flops_per_second", report.operation_rate()},
                       {"gemm_flops_per_second", report.gemm_rate},
                       {"utilisation", report.operation_rate() / report.gemm_rate},
                       {"data_sheet_utilisation", peak > 0.0 ? Json(report.operation_rate() / peak) : Json()},
                       {"copy_bytes_per_second", report.rates.copy_bytes_per_second},
                       {"memory_peak_bytes", report.times.peak_bytes},
                       {"profiled_step_seconds", report.times.profiled},
                       {"compute_seconds", report.timeline.compute},
                       {"communication_seconds", report.timeline.communication},
                       {"exposed_communication_seconds", report.timeline.exposed_communication},
                       {"idle_seconds", report.timeline.idle},
                       {"ideal_step_seconds", ideal ? Json(ideal->seconds) : Json()},
                       {"ideal_bubble", ideal ? Json(ideal->bubble) : Json()},
                       {"parts", Json::parse(format_json(report.rows, report.times.profiled))}};
  std::printf("%s\n", result.dump().c_str());
}

void print_pipeline(const StepReport& report, const IdealStep& ideal) {
  const TrainConfig& train = report.options.train;
  const std::int64_t micro_batches = train.global_batch / train.micro_batch / report.mesh.size(Axis::data);
  fmt::print(
      "pipeline     schedule {}, {} micro-batches: with passes as measured and transfers for nothing, a step of "
      "{:.4f} s, bubble {:.1f} %;\n"
      "             the step is {:.1f} % above\n",
      report.options.layout.schedule, micro_batches, ideal.seconds, 100.0 * ideal.bubble,
      100.0 * (report.times.median / ideal.seconds - 1.0));
}

void print_text(const StepReport& report) {
  const double seconds = report.times.median, operations = report.operation_rate(), peak = report.peak();
  const bool on_gpu = report.device.kind == DeviceKind::cuda;
  fmt::print("model        {} parameters; {}; {} tokens a step\n",
             human_count(static_cast<double>(parameter_count(*report.options.model))), report.mesh.shape().describe(),
             static_cast<std::int64_t>(report.tokens()));
  fmt::print("device       {} a rank; {}\n", describe_device(report.device),
             describe_precision(report.options.precision));
  fmt::print("rates        products {}, copy {}, measured at the start on rank 0\n",
             rate_text(report.rates.gemm_operations_per_second, "FLOP"),
             rate_text(report.rates.copy_bytes_per_second, "B"));
  fmt::print("{}", format_table(report.rows, report.times.profiled));
  fmt::print("timeline     {}\n", describe_timeline(report.timeline, on_gpu));
  fmt::print("step         {:.4f} s (median of {}), {:.0f} tokens/s, {} = {:.1f} % of the products' rate\n", seconds,
             report.steps, report.tokens() / seconds, rate_text(operations, "FLOP"),
             100.0 * operations / report.gemm_rate);
  if (peak > 0.0)
    fmt::print("             {:.1f} % of {}, the data sheet's dense bf16\n", 100.0 * operations / peak,
               rate_text(peak, "FLOP"));
  fmt::print(
      "             (6 x parameters without the input embedding's look-up + 12 x layers x hidden x head width "
      "operations a token)\n");
  if (report.times.ideal) print_pipeline(report, *report.times.ideal);
  fmt::print("memory       {} at the peak\n{}", human_bytes(static_cast<double>(report.times.peak_bytes)),
             report.times.memory);
}

void check_batch(const TrainConfig& train, const Mesh& mesh) {
  if (train.global_batch % (mesh.size(Axis::data) * train.micro_batch) == 0) return;
  throw UserError("train.global_batch", fmt::format("{} is not a multiple of data ranks {} x micro_batch {}",
                                                    train.global_batch, mesh.size(Axis::data), train.micro_batch));
}

}  // namespace

ExitCode bench_step(const std::vector<std::string>& arguments, World& world) {
  CommandLine line = command_line();
  if (!line.parse(arguments)) return ExitCode::done;
  const RunConfiguration configuration = read_configuration(line);
  const std::int64_t steps = line.integer("steps", 5, 1, 1000);
  const Device device = choose_device(configuration.run.device);
  const TrainerOptions options = configuration.trainer_options(device);
  Communicator& ranks = world.communicator(device, configuration.transport);
  Mesh mesh(mesh_shape(configuration.parallel, ranks.size()), ranks);
  configure_threads(configuration.run.threads);
  check_batch(options.train, mesh);
  require_memory(*options.model, runner_options(options, mesh.shape()), mesh, device);
  std::optional<PendingOutput> trace;  // rank 0's
  run_agreed(ranks, [&] {
    if (line.has("trace") && ranks.rank() == 0)
      trace.emplace(line.path("trace"), PendingOutput::Kind::file, line.has("overwrite"));
  });

  ExecutionResources rate_resources(device, configuration.run.deterministic);
  const DeviceRates rates = measure_rates(rate_resources.execution(), options.precision.parameters);
  ExecutionResources resources(device, configuration.run.deterministic);
  Profiler profiler(rates.gemm_operations_per_second, rates.copy_bytes_per_second, resources.execution().stream);
  const StepTimes times = time_steps(options, mesh, resources, profiler, steps);
  const TimelineSummary timeline = summarize_profile(profiler, times.profiled, steps);
  if (line.has("trace")) write_trace(trace ? &*trace : nullptr, profiler, ranks);
  // A machine's speed drifts: the products are measured again after the steps, and the better rate counts.
  const DeviceRates rates_after = measure_rates(rate_resources.execution(), options.precision.parameters);
  const double best_rate = std::max(rates.gemm_operations_per_second, rates_after.gemm_operations_per_second);
  const double gemm_rate = ranks.all_reduce(best_rate, ReduceOp::sum);
  if (ranks.rank() != 0) return ExitCode::done;

  std::vector<BenchRow> rows = profile_rows(profiler, steps);
  rows.push_back({device.kind == DeviceKind::cuda ? "idle" : "host and idle", 0, timeline.idle, 0.0, 0.0, 0.0});
  const StepReport report{options, mesh, device, steps, rates, times, timeline, rows, gemm_rate};
  line.has("json") ? print_json(report) : print_text(report);
  return ExitCode::done;
}

}  // namespace fulmen
