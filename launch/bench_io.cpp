// fulmen bench io: how fast samples are read, and a checkpoint written and read.
#include <chrono>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "data/corpus_writer.h"
#include "data/reader_throughput.h"
#include "framework/files.h"
#include "framework/random.h"
#include "framework/text.h"
#include "launch/bench.h"
#include "launch/command_line.h"

namespace fulmen {

namespace {

double seconds_of(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void write_random_corpus(const std::filesystem::path& folder, std::int64_t tokens) {
  std::filesystem::create_directories(folder);
  CorpusManifest manifest;
  manifest.vocabulary = 32000;
  CorpusWriter writer(folder, manifest, 50'000'000);
  const RandomStream random(1, "bench io");
  std::vector<std::int32_t> document(500);
  for (std::int64_t written = 0; written < tokens; written += static_cast<std::int64_t>(document.size())) {
    for (std::size_t i = 0; i < document.size(); ++i)
      document[i] = static_cast<std::int32_t>(random.bits(static_cast<std::uint64_t>(written) + i) % 32000);
    writer.append(document);
    writer.end_document();
  }
  writer.finish({});
}

CommandLine command_line() {
  CommandLine line(
      "bench io [options]",
      "Reads shuffled and ordered samples of a corpus on one thread. Writes, verifies and reads a checkpoint.\n"
      "The system reads cached files from memory: the figures are this program's, not the disk's.",
      "fulmen bench io --folder /scratch/bench");
  line.option("folder", "where to write the files, removed afterwards (bench-io)");
  line.option("corpus", "read this corpus instead of a random one");
  line.option("sequence-length", "tokens of a sample (2048)");
  line.option("megabytes", "size of the checkpoint (512)");
  line.flag("json", "print one JSON object");
  return line;
}

// By the names of the JSON output.
using Rates = nlohmann::ordered_json;

void measure_samples(const CommandLine& line, const std::filesystem::path& folder, Rates& rates) {
  std::filesystem::path corpus = line.path("corpus");
  if (corpus.empty()) {
    corpus = folder / "corpus";
    constexpr std::int64_t tokens = 20'000'000;
    const double seconds = seconds_of([&] { write_random_corpus(corpus, tokens); });
    rates["corpus_write_tokens_per_second"] = static_cast<double>(tokens) / seconds;
  }
  ReaderBenchmark reader;
  reader.sequence_length = line.integer("sequence-length", 2048, 1, 1 << 30);
  bench_reader(corpus, reader);  // brings the pages into memory
  rates["shuffled_tokens_per_second"] = bench_reader(corpus, reader);
  reader.shuffle = false;
  rates["ordered_tokens_per_second"] = bench_reader(corpus, reader);
}

void measure_checkpoint(const CommandLine& line, const std::filesystem::path& folder, Communicator& ranks,
                        Rates& rates) {
  const std::int64_t elements = line.integer("megabytes", 512, 1, 1 << 20) * (1 << 20) / 4;
  std::vector<float> weights(static_cast<std::size_t>(elements), 0.5f);
  const Tensor memory(weights.data(), DType::fp32, {elements});
  const double bytes = static_cast<double>(memory.bytes());
  const auto rate_of = [&](const auto& work) { return bytes / seconds_of(work); };
  rates["checkpoint_save_bytes_per_second"] = rate_of([&] {
    save_checkpoint(folder, {}, {{"parameters/weights", {elements}, {0}, memory}}, ranks);
  });
  const CheckpointReader checkpoint(find_checkpoint(folder));
  rates["checkpoint_verify_bytes_per_second"] = rate_of([&] { checkpoint.verify(ranks); });
  rates["checkpoint_read_bytes_per_second"] = rate_of([&] {
    checkpoint.read({"parameters/weights", {elements}, {0}, memory});
  });
}

void print_rates(const Rates& rates) {
  const auto print = [&](const char* label, const char* name, const char* format, double unit) {
    if (rates.contains(name)) fmt::print(fmt::runtime(format), label, rates[name].get<double>() / unit);
  };
  print("corpus write", "corpus_write_tokens_per_second", "{:<19} {:8.1f} M tokens/s\n", 1e6);
  print("samples, shuffled", "shuffled_tokens_per_second", "{:<19} {:8.1f} M tokens/s a thread\n", 1e6);
  print("samples, ordered", "ordered_tokens_per_second", "{:<19} {:8.1f} M tokens/s a thread\n", 1e6);
  print("checkpoint save", "checkpoint_save_bytes_per_second", "{:<19} {:8.2f} GB/s, flushed to disk\n", 1e9);
  print("checkpoint verify", "checkpoint_verify_bytes_per_second", "{:<19} {:8.2f} GB/s\n", 1e9);
  print("checkpoint read", "checkpoint_read_bytes_per_second", "{:<19} {:8.2f} GB/s\n", 1e9);
}

}  // namespace

ExitCode bench_io(const std::vector<std::string>& arguments, World& world) {
  CommandLine line = command_line();
  if (!line.parse(arguments)) return ExitCode::done;
  Communicator& ranks = world.communicator();
  if (ranks.size() > 1) throw UserError("bench io", "runs as one process", "start it without mpirun");
  const std::filesystem::path folder = line.path("folder", "bench-io");
  if (std::filesystem::exists(folder))
    throw UserError(folder.string(), "exists already", "name a new folder: it is removed at the end");
  ensure_writable_folder(folder, "--folder");

  Rates rates;
  measure_samples(line, folder, rates);
  measure_checkpoint(line, folder, ranks, rates);
  std::filesystem::remove_all(folder);
  if (line.has("json"))
    std::printf("%s\n", rates.dump().c_str());
  else
    print_rates(rates);
  return ExitCode::done;
}

}  // namespace fulmen
