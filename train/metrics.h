// metrics.jsonl: one object per logged step, the record of a run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>

#include "model/model_config.h"

namespace fulmen {

struct StepMetrics {
  std::int64_t step = 0;    // updates done, so the first is 1
  std::int64_t tokens = 0;  // consumed since the run's beginning
  double loss_nats = 0.0;   // the global mean before the update
  // The layers' own losses, the mean over samples; loss_nats is without them.
  std::optional<double> layer_loss;
  double gradient_norm = 0.0;  // before clipping
  double learning_rate = 0.0;
  double tokens_per_second = 0.0;  // of all ranks together
  double tokens_per_second_per_rank = 0.0;
  double model_flops_utilisation = 0.0;
  double step_seconds = 0.0;
  std::map<std::string, double> parts;             // of step_seconds, by name
  std::optional<double> bubble, predicted_bubble;  // of a pipeline: share of step_seconds that ranks wait for transfers
  std::uint64_t memory_peak_bytes = 0;             // the largest of any rank
};

// Calls f(line, its step, or -1 where it tells none) for each line of a metrics.jsonl that holds an object. A damaged
// line is left out: cut short by a crash, or with a step that is no number. Throws UserError for what is not an
// ordinary file, and for a line of more than a mebibyte.
void for_each_metrics_line(const std::filesystem::path& path,
                           const std::function<void(const std::string& line, double step)>& f);

// Appends to a file, each line whole or not at all. Only rank 0 has a writer.
class MetricsWriter {
 public:
  // Lines of steps after `resumed_step` are dropped: they will be made again. Throws UserError when the file is not
  // writable, holds no metrics (for_each_metrics_line), or is larger than 4 GiB.
  MetricsWriter(const std::filesystem::path& path, std::int64_t resumed_step);
  ~MetricsWriter();  // says how many lines the disk has not taken
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  // Never ends a run. Lines that the disk does not take wait in memory, the first 8 MiB of them. They are written
  // before the lines of the next call. A file that somebody removed or replaced is begun again. Both are said once.
  void write(const StepMetrics& metrics);

 private:
  bool open();            // for appending; errno says why not
  bool in_place() const;  // whether the open file still has that name
  int append();           // the waiting lines; 0, or the error's number
  void give_notice(int error);

  std::filesystem::path path_;
  int file_ = -1;
  std::optional<std::int64_t> torn_at_;  // where half a line begins that could not be cut off yet
  std::string waiting_;                  // whole lines
  std::int64_t waiting_lines_ = 0, lost_lines_ = 0;
  bool in_trouble_ = false;  // and that was said
};

// Arithmetic of training per token: 6 x parameters, plus operations of the branches outside products
// (model/stage_costs.h). A tied matrix counts once, as the output projection. Linear attention's state takes 12 x
// layers x hidden x head width. Update and read-out are 2 x 2 operations an element of the state, times 3 for the
// backward pass.
double training_flops_per_token(const ModelConfig& config, std::int64_t length);

}  // namespace fulmen
