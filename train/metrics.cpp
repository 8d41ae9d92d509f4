// The record of a run.
#include "train/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <system_error>

#include <nlohmann/json.hpp>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/json_document.h"
#include "framework/log.h"
#include "framework/outside_files.h"
#include "model/stage_costs.h"

namespace fulmen {

namespace {

constexpr std::size_t longest_line = std::size_t{1} << 20;
constexpr std::size_t most_kept = std::size_t{4} << 30;  // the lines of some six million steps

// The lines of an existing file up to a step, dropping a last line that a crash cut short.
std::string lines_up_to(const std::filesystem::path& path, std::int64_t last) {
  std::string kept;
  if (!std::filesystem::exists(path)) return kept;
  for_each_metrics_line(path, [&](const std::string& line, double step) {
    if (step > static_cast<double>(last)) return;
    if (kept.size() + line.size() >= most_kept)
      throw UserError(path.string(), "is larger than 4 GiB, more than is read again at a start",
                      "move it away: the run begins another file");
    kept += line + "\n";
  });
  return kept;
}

// To the millisecond.
double seconds_since_1970() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) / 1e3;
}

}  // namespace

void for_each_metrics_line(const std::filesystem::path& path,
                           const std::function<void(const std::string& line, double step)>& f) {
  for_each_line(path, longest_line, [&](const std::string& line) {
    std::optional<nlohmann::json> object;
    try {
      object = parse_json_object(line, path.string());
    } catch (const UserError&) {
      return;  // torn
    }
    const auto step = object->find("step");
    if (step != object->end() && !step->is_number()) return;  // damaged
    f(line, step != object->end() ? step->get<double>() : -1.0);
  });
}

MetricsWriter::MetricsWriter(const std::filesystem::path& path, std::int64_t resumed_step) : path_(path) {
  if (std::filesystem::exists(path)) require_regular_file(path);
  if (resumed_step == 0 && std::filesystem::exists(path) && std::filesystem::file_size(path) > 0) {
    const std::filesystem::path earlier = path.parent_path() / "metrics-previous.jsonl";
    std::filesystem::rename(path, earlier);
    log_warning("the metrics of an earlier run in this folder are now {}", earlier.string());
  }
  write_text_atomically(path, lines_up_to(path, resumed_step));
  if (!open())
    throw UserError(path.string(), "cannot be written: " + std::generic_category().message(errno),
                    "check the folder's permissions and the disk");
}

MetricsWriter::~MetricsWriter() {
  if (waiting_lines_ > 0) give_notice(append());
  if (waiting_lines_ + lost_lines_ > 0)
    log_warning("{}: {} lines are lost, the disk did not take them", path_.string(), waiting_lines_ + lost_lines_);
  if (file_ >= 0) ::close(file_);
}

bool MetricsWriter::open() {
  if (file_ >= 0) ::close(file_);
  file_ = ::open(path_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  torn_at_.reset();
  return file_ >= 0;
}

bool MetricsWriter::in_place() const {
  struct stat named, opened;
  return file_ >= 0 && ::stat(path_.c_str(), &named) == 0 && ::fstat(file_, &opened) == 0 &&
         named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
}

// The written part of a line that did not fit is cut off before anything follows it.
int MetricsWriter::append() {
  if (file_ < 0) return EBADF;
  if (torn_at_ && ::ftruncate(file_, *torn_at_) != 0) return errno;
  torn_at_.reset();
  struct stat status;
  if (::fstat(file_, &status) != 0) return errno;
  std::size_t written = 0;
  int code = 0;
  while (code == 0 && written < waiting_.size()) {
    const ssize_t bytes = ::write(file_, waiting_.data() + written, waiting_.size() - written);
    if (bytes >= 0) written += static_cast<std::size_t>(bytes);
    if (bytes < 0 && errno != EINTR) code = errno;
  }
  const std::size_t whole = written == 0 ? 0 : waiting_.rfind('\n', written - 1) + 1;  // npos + 1 is none
  if (written > whole) torn_at_ = status.st_size + static_cast<off_t>(whole);
  if (torn_at_ && ::ftruncate(file_, *torn_at_) == 0) torn_at_.reset();
  waiting_lines_ -= std::count(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(whole), '\n');
  waiting_.erase(0, whole);
  return code;
}

void MetricsWriter::write(const StepMetrics& metrics) {
  nlohmann::ordered_json line = {
      {"step", metrics.step},
      {"time", seconds_since_1970()},
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
  if (metrics.layer_loss) line["layer_loss"] = *metrics.layer_loss;
  if (metrics.predicted_bubble) line["predicted_bubble"] = *metrics.predicted_bubble;
  constexpr std::size_t most_waiting = std::size_t{8} << 20;
  if (waiting_.size() < most_waiting) {
    waiting_ += line.dump() + "\n";
    ++waiting_lines_;
  } else {
    ++lost_lines_;
  }
  if (!in_place()) {
    if (!in_trouble_)
      log_warning("{} was removed or replaced: it is begun again at step {}", path_.string(), metrics.step);
    if (!open()) return give_notice(errno);
  }
  give_notice(append());
}

// A record is not worth a run.
void MetricsWriter::give_notice(int error) {
  if (error != 0 && !in_trouble_)
    log_warning("{} cannot be written: {}; its lines wait in memory: check the disk", path_.string(),
                std::generic_category().message(error));
  if (error == 0 && in_trouble_) log_info("{} is written again", path_.string());
  in_trouble_ = error != 0;
}

double training_flops_per_token(const ModelConfig& config, std::int64_t length) {
  // An embedding that is no projection is read, not multiplied.
  const std::int64_t read_only = config.tied() ? 0 : config.vocabulary * config.hidden;
  return 6.0 * static_cast<double>(parameter_count(config) - read_only) + operations_beside_products(config, length);
}

}  // namespace fulmen
