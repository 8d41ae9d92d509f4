// fulmen inspect: what is in a checkpoint, a corpus, a run or its flight records.
#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "data/corpus.h"
#include "framework/files.h"
#include "framework/text.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "parallel/flight_report.h"
#include "train/metrics.h"

namespace fulmen {

namespace {

using Json = nlohmann::ordered_json;

Json inspect_checkpoint(const std::filesystem::path& folder) {
  const CheckpointReader checkpoint(folder);
  const CheckpointDescription& saved = checkpoint.description();
  Json tensors = Json::object();
  for (const std::string& name : checkpoint.names())
    tensors[name] = {{"dtype", std::string(name_of(checkpoint.dtype(name)))}, {"shape", checkpoint.shape(name)}};
  return {{"kind", "checkpoint"},   {"folder", folder.string()}, {"step", saved.step},
          {"tokens", saved.tokens}, {"model", saved.model},      {"unprotected", checkpoint.unprotected()},
          {"tensors", tensors}};
}

Json inspect_corpus(const std::filesystem::path& folder) {
  const CorpusManifest manifest = read_corpus_manifest(folder);
  Json shards = Json::array();
  for (const CorpusShard& shard : manifest.shards)
    shards.push_back({{"file", shard.file}, {"tokens", shard.tokens}, {"documents", shard.documents}});
  return {{"kind", "corpus"},
          {"folder", folder.string()},
          {"vocabulary", manifest.vocabulary},
          {"tokens", manifest.tokens()},
          {"documents", manifest.documents()},
          {"tokenizer", manifest.tokenizer_file},
          {"unprotected", unprotected(manifest)},
          {"shards", shards}};
}

// The flight records of a run that was cut short: who is missing, and what each of those did last, by communicator.
Json inspect_flight(const std::filesystem::path& folder) {
  const FlightReport report = report_flight(folder);
  Json blamed = Json::array();
  for (const FlightBlame& blame : report.blamed) {
    Json operations = Json::object();
    for (const auto& [communicator, operation] : blame.on_communicators) operations[communicator] = operation;
    blamed.push_back({{"rank", blame.rank},
                      {"what", blame.what},
                      {"last_operation", blame.last_operation},
                      {"last_operations", operations}});
  }
  return {{"kind", "flight"}, {"folder", folder.string()}, {"ranks", report.ranks}, {"recorded", report.recorded},
          {"blamed", blamed}, {"verdict", report.verdict}};
}

Json inspect_run(const std::filesystem::path& folder) {
  std::string last_line = "null";
  for_each_metrics_line(folder / "metrics.jsonl", [&](const std::string& line, double /*step*/) {
    if (line.find("\"loss_nats\":") != std::string::npos) last_line = line;
  });
  const Json last = Json::parse(last_line);
  std::vector<std::string> skipped;
  const auto newest = newest_checkpoint(folder / "checkpoints", &skipped);
  Json result = {{"kind", "run"},
                 {"folder", folder.string()},
                 {"last_step", last},
                 {"newest_checkpoint", newest ? newest->string() : ""},
                 {"invalid_checkpoints", skipped}};
  if (holds_flight_records(folder / "flight")) result["flight"] = inspect_flight(folder / "flight");
  return result;
}

Json inspect(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path))
    throw UserError(path.string(), "is not a folder", "give a checkpoint, a corpus or a run's folder");
  if (std::filesystem::exists(path / "metrics.jsonl")) return inspect_run(path);
  if (holds_flight_records(path)) return inspect_flight(path);
  if (holds_flight_records(path / "flight")) return inspect_flight(path / "flight");  // of a run that made no step
  if (std::filesystem::exists(path / "manifest.yaml")) {
    const std::vector<std::string> lines = split(read_text(path / "manifest.yaml"), '\n');
    const auto tells = [](const std::string& line) {
      return line.starts_with("format:") && line.find("fulmen-corpus") != std::string::npos;
    };
    if (std::ranges::any_of(lines, tells)) return inspect_corpus(path);
  }
  return inspect_checkpoint(find_checkpoint(path));
}

void print(const Json& value, int indent) {
  for (const auto& [key, item] : value.items()) {
    std::printf("%*s%s:", indent, "", printable(key).c_str());
    if (item.is_object() && !item.contains("dtype")) {
      std::printf("\n");
      print(item, indent + 2);
    } else if (item.is_array() && !item.empty() && item[0].is_object()) {
      std::printf("\n");
      for (const Json& element : item) {
        print(element, indent + 2);
        std::printf("\n");
      }
    } else {
      std::printf(" %s\n", printable(item.is_string() ? item.get<std::string>() : item.dump()).c_str());
    }
  }
}

}  // namespace

ExitCode run_inspect(const std::vector<std::string>& arguments, World& world) {
  CommandLine line(
      "inspect PATH [--json]",
      "Says what is in a checkpoint, a corpus or a run's folder. After a run hung or died, it also reads the flight\n"
      "records in the folder `flight`. They tell which rank is missing, and its last operation.",
      "fulmen inspect runs/demo");
  line.positional("PATH", "the folder");
  line.flag("json", "print one JSON object");
  if (!line.parse(arguments)) return ExitCode::done;
  if (world.size() > 1) throw UserError("inspect", "runs as one process", "start it without mpirun");
  const Json result = inspect(line.path("PATH"));
  if (line.has("json"))
    std::printf("%s\n", result.dump().c_str());
  else
    print(result, 0);
  return ExitCode::done;
}

}  // namespace fulmen
