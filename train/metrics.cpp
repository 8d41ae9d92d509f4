// The record of a run.
#include "train/metrics.h"

#include <nlohmann/json.hpp>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/log.h"

namespace fulmen {

namespace {

// The lines of an existing file up to a step, dropping a last line that a crash cut short.
std::string lines_up_to(const std::filesystem::path& path, std::int64_t step) {
  std::string kept;
  if (!std::filesystem::exists(path)) return kept;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, false);
    if (!object.is_object()) continue;
    const auto number = object.find("step");
    if (number == object.end() || (number->is_number() && number->get<double>() <= static_cast<double>(step)))
      kept += line + "\n";
  }
  if (!file.eof()) throw UserError(path.string(), "cannot be read to its end", "check its permissions and the disk");
  return kept;
}

}  // namespace

MetricsWriter::MetricsWriter(const std::filesystem::path& path, std::int64_t resumed_step) : path_(path) {
  if (resumed_step == 0 && std::filesystem::exists(path) && std::filesystem::file_size(path) > 0) {
    const std::filesystem::path earlier = path.parent_path() / "metrics-previous.jsonl";
    std::filesystem::rename(path, earlier);
    log_warning("the metrics of an earlier run in this folder are now {}", earlier.string());
  }
  write_text_atomically(path, lines_up_to(path, resumed_step));
  file_.open(path, std::ios::app);
  if (!file_) throw UserError(path.string(), "cannot be written", "check the folder's permissions and the disk");
}

void MetricsWriter::write(const StepMetrics& metrics) {
  nlohmann::ordered_json line = {
      {"step", metrics.step},
      {"tokens", metrics.tokens},
      {"loss_nats", metrics.loss_nats},
      {"grad_norm", metrics.gradient_norm},
      {"lr", metrics.learning_rate},
      {"tokens_per_second", metrics.tokens_per_second},
      {"tokens_per_second_per_rank", metrics.tokens_per_second_per_rank},
      {"model_flops_utilisation", metrics.model_flops_utilisation},
      {"step_seconds", metrics.step_seconds},
      {"parts", metrics.parts},
      {"memory_peak_bytes", metrics.memory_peak_bytes},
  };
  if (metrics.bubble) line["bubble"] = *metrics.bubble;
  if (metrics.predicted_bubble) line["predicted_bubble"] = *metrics.predicted_bubble;
  file_ << line.dump() << std::endl;
  if (file_) return;
  // A record is not worth a run.
  log_warning("{}: the line of step {} cannot be written: check the disk", path_.string(), metrics.step);
  file_.clear();
}

double training_flops_per_token(const ModelConfig& config) {
  double attention = 0.0;
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    attention += 12.0 * static_cast<double>(config.hidden * config.head_width()) * (config.has_lrpe(layer) ? 2.0 : 1.0);
  return 6.0 * static_cast<double>(parameter_count(config)) + attention;
}

}  // namespace fulmen
