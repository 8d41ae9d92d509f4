// fulmen bench decode: tokens/s of recurrent decoding, held against reading the weights once a token.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <limits>

#include <nlohmann/json.hpp>

#include "framework/gpu.h"
#include "framework/text.h"
#include "framework/threads.h"
#include "infer/decoder.h"
#include "kernels/elementwise.h"
#include "launch/bench.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"

namespace fulmen {

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void finish(const Execution& execution) {
  if (execution.device.kind == DeviceKind::cuda) gpu::synchronize(execution.stream);
}

// Bytes per second of reading memory of `bytes`, as much as the weights hold: the best of several passes.
double read_rate(const Execution& execution, std::size_t bytes) {
  const auto elements = static_cast<std::int64_t>(bytes / sizeof(float));
  const OwnedTensor memory(execution.device, DType::fp32, {elements}, MemoryKind::workspace, *execution.ledger);
  const OwnedTensor total(execution.device, DType::fp64, {1}, MemoryKind::workspace, *execution.ledger);
  fill_zero(execution, memory);
  finish(execution);
  double best = std::numeric_limits<double>::max();
  for (int repeat = 0; repeat < 10; ++repeat) {
    const auto start = Clock::now();
    add_sum_of_squares(execution, memory, total);
    finish(execution);
    best = std::min(best, seconds_since(start));
  }
  return static_cast<double>(bytes) / best;
}

}  // namespace

ExitCode bench_decode(const std::vector<std::string>& arguments, World& world) {
  CommandLine line(
      "bench decode --checkpoint DIR [options]",
      "Decodes token by token and compares the rate with what reading the weights once a token would allow.",
      "fulmen bench decode --checkpoint runs/demo/checkpoints");
  line.option("checkpoint", "a checkpoint, a folder of them or a run (then the newest)", true);
  line.option("tokens", "tokens to time (200)");
  line.option("device", "auto (default), cpu or cuda");
  line.option("precision", "auto (default: bf16 on a GPU, else fp32), bf16, fp32 or fp64");
  line.flag("json", "print one JSON object");
  if (!line.parse(arguments)) return ExitCode::done;
  if (world.size() > 1) throw UserError("bench decode", "runs as one process", "start it without mpirun");
  configure_threads({});
  const std::int64_t tokens = line.integer("tokens", 200, 1, 1 << 24);
  const Device device = choose_device(line.text("device", "auto"), "--device");
  const Precision precision = parse_precision(line.text("precision", "auto"), device);
  ExecutionResources resources(device);
  constexpr std::int64_t untimed = 10;
  Decoder decoder(CheckpointReader(find_checkpoint(line.path("checkpoint"))), untimed + tokens, precision,
                  resources.execution());
  const auto weight_bytes = static_cast<std::size_t>(parameter_count(decoder.config())) * size_of(precision.parameters);
  const double rate = read_rate(resources.execution(), weight_bytes);

  for (std::int64_t t = 0; t < untimed; ++t) decoder.advance(1);
  std::vector<double> seconds;
  for (std::int64_t t = 0; t < tokens; ++t) {
    const auto start = Clock::now();
    decoder.advance(static_cast<std::int32_t>(t % decoder.config().vocabulary));
    seconds.push_back(seconds_since(start));
  }
  std::ranges::sort(seconds);
  const double median = seconds[seconds.size() / 2];
  const double floor = static_cast<double>(weight_bytes) / rate;
  if (line.has("json")) {
    const nlohmann::ordered_json result = {
        {"device", describe_device(device)},   {"precision", describe_precision(precision)},
        {"threads", compute_threads()},        {"weight_bytes", weight_bytes},
        {"read_bytes_per_second", rate},       {"tokens_per_second", 1.0 / median},
        {"share_of_read_rate", floor / median}};
    std::printf("%s\n", result.dump().c_str());
    return ExitCode::done;
  }
  std::printf("weights      %s in %s, read at %.1f GB/s on %s: at most %.0f tokens/s\n",
              human_bytes(static_cast<double>(weight_bytes)).c_str(),
              std::string(name_of(precision.parameters)).c_str(), rate * 1e-9, describe_device(device).c_str(),
              1.0 / floor);
  std::printf("decoding     %.3f ms a token (median of %lld), %.0f tokens/s, %.0f %% of that\n", 1e3 * median,
              static_cast<long long>(tokens), 1.0 / median, 100.0 * floor / median);
  return ExitCode::done;
}

}  // namespace fulmen
