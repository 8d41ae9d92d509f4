// The training loop.
#include "train/trainer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <thread>
#include <utility>

#include "checkpoint/agreement.h"
#include "checkpoint/parameters.h"
#include "data/batch_loader.h"
#include "framework/files.h"
#include "framework/log.h"
#include "framework/progress.h"
#include "framework/signals.h"
#include "framework/text.h"
#include "kernels/product_rate.h"
#include "train/learning_rate.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/preflight.h"
#include "train/training_state.h"

namespace fulmen {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Trainer {
 public:
  Trainer(const TrainerOptions& options, Mesh& mesh, const Execution& execution)
      : options_(options),
        mesh_(mesh),
        execution_(execution),
        leader_(mesh.world().rank() == 0),
        folder_(options.run.directory),
        checkpoints_(folder_ / "checkpoints"),
        steps_(options.train.total_steps(options.data.sequence_length)),
        runner_(*options.model, runner_options(options, mesh.shape()), mesh, execution),
        optimizer_(options.train.optimizer, options.train.clip, runner_.parameters(), mesh, execution) {}

  void start(PhaseTimes& start_up);
  ExitCode run();

 private:
  void set_weights();
  bool resumes_own_checkpoint();
  void remember_corpus();
  void write_header(double peak);
  void write_shard_maps();
  StepMetrics step(BatchLoader& loader);
  bool asked_to_stop();
  void keep(const std::string& name, std::string text);
  void look_after_folder();
  std::string advice_after_divergence() const;
  void save(bool last);
  void save_once();
  std::string describe(const StepMetrics& metrics) const;

  const TrainerOptions& options_;
  Mesh& mesh_;
  Execution execution_;
  bool leader_;
  std::filesystem::path folder_, checkpoints_;
  std::filesystem::path tokenizer_;  // empty for none
  TrainingCorpus corpus_;
  std::int64_t steps_;
  ModelRunner runner_;
  Optimizer optimizer_;
  TrainingProgress progress_;
  std::int64_t saved_step_ = -1;
  bool saved_here_ = false;                            // since the start of this process
  bool save_failed_ = false;                           // the last time
  std::map<std::string, std::string> kept_;            // files of the run folder, by name: their text
  bool folder_damaged_ = false, folder_lost_ = false;  // and that was said
  double flops_per_token_ = 0.0, peak_ = 0.0;
  double bubbles_ = 0.0;         // measured, the sum over the steps of this process
  std::int64_t steps_done_ = 0;  // counted with a pipeline only
  std::vector<Batch> batches_;
};

void Trainer::set_weights() {
  if (options_.resume) {
    const CheckpointReader checkpoint(*options_.resume);
    progress_ = load_training_state(checkpoint, *options_.model, runner_, optimizer_, mesh_.world());
    log_info("resuming from {} at step {}", options_.resume->string(), progress_.step);
    if (resumes_own_checkpoint()) saved_step_ = progress_.step;
  } else {
    initialize_training_state(static_cast<std::uint64_t>(options_.run.seed), runner_, optimizer_);
  }
  run_agreed(mesh_.world(), [&] {
    if (leader_ && options_.weights_are_set) options_.weights_are_set();
  });
}

bool Trainer::resumes_own_checkpoint() {
  std::error_code ignored;
  const bool own = leader_ && std::filesystem::equivalent(std::filesystem::absolute(*options_.resume).parent_path(),
                                                          checkpoints_, ignored);
  return mesh_.world().all_reduce(static_cast<std::int64_t>(own), ReduceOp::max) != 0;
}

// The data of it that saving needs, so that later saves do not depend on the file.
void Trainer::remember_corpus() {
  const CorpusManifest corpus = read_corpus_manifest(options_.data.path);
  corpus_ = {corpus_identity(corpus), {std::string(name_of(corpus.tokenizer)), corpus.end_of_document}};
  const std::string& name = corpus.tokenizer_file;
  if (name.empty()) return;
  // Whatever the corpus calls it: no name from outside in the run's folder.
  constexpr const char* tokenizer_file = "tokenizer.model";
  tokenizer_ = folder_ / tokenizer_file;
  if (leader_) keep(tokenizer_file, read_text(std::filesystem::path(options_.data.path) / name));
}

// Rank 0: writes a file into the run folder, where it stays for as long as the run.
void Trainer::keep(const std::string& name, std::string text) {
  write_text_atomically(folder_ / name, text);
  kept_[name] = std::move(text);
}

// A folder that somebody removed or moved away would end the run at its next checkpoint.
void Trainer::look_after_folder() {
  std::vector<std::string> gone;
  std::error_code unknown;
  for (const auto& [name, text] : kept_)
    if (!std::filesystem::exists(folder_ / name, unknown) && !unknown) gone.push_back(name);
  if (gone.empty()) folder_damaged_ = folder_lost_ = false;
  if (gone.empty()) return;
  if (!std::exchange(folder_damaged_, true))
    log_warning("{}: {} vanished from the run folder at step {}: writing it again", folder_.string(), join(gone, ", "),
                progress_.step);
  try {
    std::filesystem::create_directories(folder_);
    for (const std::string& name : gone) write_text_atomically(folder_ / name, kept_[name]);
  } catch (const std::exception& error) {
    if (!std::exchange(folder_lost_, true)) log_warning("{}", error.what());
  }
}

// The slowest rank's time of each phase.
void log_start_up(const PhaseTimes& own, Communicator& ranks) {
  PhaseTimes slowest;
  for (const auto& [phase, seconds] : own.phases()) slowest.add(phase, ranks.all_reduce(seconds, ReduceOp::max));
  log_info("start-up: {}", slowest.describe());
}

void Trainer::start(PhaseTimes& start_up) {
  start_up.run(options_.resume ? "loading" : "initialisation", [&] { set_weights(); });
  flops_per_token_ = training_flops_per_token(*options_.model, options_.data.sequence_length);
  start_up.run("measuring the peak", [&] {
    Communicator& ranks = mesh_.world();
    const double own = measure_product_rate(execution_, options_.precision.parameters, [&] { ranks.barrier(); });
    peak_ = ranks.all_reduce(own, ReduceOp::sum);
  });
  const MeshShape& shape = mesh_.shape();
  log_info("model: {} parameters ({})", human_count(static_cast<double>(parameter_count(*options_.model))),
           with_thousands(parameter_count(*options_.model)));
  log_info("layout: {}; {} micro-batches of {} x {} per step, schedule {}, predicted bubble {:.1f} %", shape.describe(),
           runner_.micro_batches(), options_.train.micro_batch, options_.data.sequence_length, options_.layout.schedule,
           100.0 * runner_.schedule_report().bubble);
  run_agreed(mesh_.world(), [&] { remember_corpus(); });
  if (progress_.step >= steps_)
    log_warning("nothing is left to do: the run is at step {} of {}", progress_.step, steps_);
  if (leader_) write_header(peak_);
  write_shard_maps();
  log_start_up(start_up, mesh_.world());
}

// Collective: a map differs between stages, and between tensor ranks whose parts differ.
void Trainer::write_shard_maps() {
  const ShardMap& map = runner_.parameters().shard_map();
  log_info("shards: ZeRO {} over {} ranks, {} buckets", runner_.parameters().sharding().stage, map.shards(),
           map.buckets().size());
  Communicator& model_ranks = mesh_.along({Axis::tensor, Axis::pipeline});
  const std::string mine = fmt::format("  - tensor: {}\n    pipeline: {}\n{}", mesh_.coordinate(Axis::tensor),
                                       mesh_.coordinate(Axis::pipeline), map.yaml(4));
  std::string maps;
  for (int rank = 0; rank < model_ranks.size(); ++rank) maps += model_ranks.broadcast_text(mine, rank);
  if (!leader_) return;
  keep("shard_map.yaml",
       "# Rank r of a shard group owns part r of the `shards` equal parts of every bucket.\n"
       "format: fulmen-shard-map\nversion: 1\nmaps:\n" +
           maps);
}

void Trainer::write_header(double peak) {
  const std::int64_t order = rate_matrix_order(execution_.device);
  keep("configuration.yaml", options_.configuration);
  keep("run.yaml",
       fmt::format("parameters: {}\n"
                   "ranks: {}\n"
                   "layout: {}\n"
                   "flops_per_token: {}   # 6 x parameters + operations of layers outside products\n"
                   "peak_flops: {:.6g}   # all ranks' {} x {} x {} matrix product, measured at the start, summed\n"
                   "model_flops_utilisation: tokens_per_second x flops_per_token / peak_flops\n",
                   parameter_count(*options_.model), mesh_.world().size(), mesh_.shape().describe(), flops_per_token_,
                   peak, order, order, order));
}

std::string Trainer::advice_after_divergence() const {
  const std::string how = "a lower learning rate or more warm-up";
  if (saved_here_) return "go on from the last checkpoint with " + how;
  if (!options_.resume || progress_.step == 0) return "start again with " + how;
  return fmt::format("{} leads there: go back to an older checkpoint (--rewind PATH), with {}",
                     options_.resume->string(), how);
}

StepMetrics Trainer::step(BatchLoader& loader) {
  const auto start = Clock::now();
  batches_.clear();
  for (int m = 0; m < runner_.micro_batches(); ++m) batches_.push_back(loader.next());
  const double data_seconds = seconds_since(start);
  const double rate =
      learning_rate(options_.train.schedule, options_.train.optimizer.learning_rate, progress_.step, steps_);
  const StepLoss loss = runner_.accumulate(batches_, [&] { optimizer_.step(rate, progress_.step); });
  const double norm =
      optimizer_.gradient_norm();  // the device is done with the step: reading the loss has waited for it
  const bool counts = loss.targets > 0.0;
  if (!counts && leader_)
    log_warning("step {}: none of its targets counts, so the weights stay as they are", progress_.step + 1);
  if (counts && (!std::isfinite(loss.loss_nats + loss.layer_loss) || !std::isfinite(norm)))
    throw DivergedError(fmt::format("step {}: the loss is {} and the gradient's norm {}\n  -> {}", progress_.step + 1,
                                    loss.loss_nats, norm, advice_after_divergence()));

  const std::int64_t step_tokens = options_.train.global_batch * options_.data.sequence_length;
  progress_.step += 1;
  progress_.samples += options_.train.global_batch;
  progress_.tokens += step_tokens;

  StepMetrics metrics;
  metrics.step = progress_.step;
  metrics.tokens = progress_.tokens;
  metrics.loss_nats = loss.loss_nats;
  if (runner_.layers_lose()) metrics.layer_loss = loss.layer_loss;
  metrics.gradient_norm =
      counts ? optimizer_.gradient_norm(ParameterGroupKey().clip_group) : std::numeric_limits<double>::quiet_NaN();
  metrics.learning_rate = rate;
  metrics.step_seconds = seconds_since(start);
  metrics.tokens_per_second = static_cast<double>(step_tokens) / metrics.step_seconds;
  metrics.tokens_per_second_per_rank = metrics.tokens_per_second / mesh_.world().size();
  metrics.model_flops_utilisation = metrics.tokens_per_second * flops_per_token_ / peak_;
  const double reduce_seconds = runner_.reduce_seconds(), update_seconds = runner_.update_seconds();
  metrics.parts = {{"data", data_seconds},
                   {"reduce", reduce_seconds},
                   {"update", update_seconds},
                   {"compute", metrics.step_seconds - data_seconds - reduce_seconds - update_seconds}};
  if (mesh_.size(Axis::pipeline) > 1) {
    metrics.bubble = loss.waiting_seconds / metrics.step_seconds;
    metrics.predicted_bubble = runner_.schedule_report().bubble;
    bubbles_ += *metrics.bubble;
    ++steps_done_;
  }
  return metrics;
}

// Asked before anything of a step is written. Throws UserError when the run folder is another run's by now.
bool Trainer::asked_to_stop() {
  constexpr std::int64_t stop = 1, leave = 2;
  const std::string other = leader_ && options_.taken_by ? options_.taken_by() : "";
  std::error_code unreadable;  // is no wish
  const bool file = leader_ && std::filesystem::exists(folder_ / "STOP", unreadable);
  const std::int64_t wish = !other.empty() ? leave : stop_signal() != 0 || file ? stop : 0;
  const std::int64_t agreed = mesh_.world().all_reduce(wish, ReduceOp::max);
  if (agreed == leave)
    throw UserError(fmt::format("run.directory: {}", folder_.string()),
                    fmt::format("was taken over by {}: this run ends at step {} without writing there",
                                mesh_.world().broadcast_text(other, 0), progress_.step),
                    "let one run at a time use a folder, and leave its run.lock alone");
  return agreed == stop;
}

void Trainer::save_once() {
  const auto start = Clock::now();
  std::vector<std::filesystem::path> extra;
  if (!tokenizer_.empty()) extra.push_back(tokenizer_);
  const std::filesystem::path saved =
      save_training_state(checkpoints_, *options_.model, options_.configuration, progress_, runner_, optimizer_, extra,
                          mesh_.world(), corpus_);
  saved_step_ = progress_.step;
  saved_here_ = true;
  save_failed_ = false;
  log_info("checkpoint {} in {:.2f} s", saved.string(), seconds_since(start));
  if (!leader_) return;
  try {
    prune_checkpoints(checkpoints_, options_.checkpoint.keep);
  } catch (const UserError& error) {
    log_warning("older checkpoints are not pruned: {}", error.what());
  }
}

// A save that fails for want of a place is tried again; all ranks have agreed on its failure. If it was not the last
// save, training then goes on until the next.
void Trainer::save(bool last) {
  if (saved_step_ == progress_.step) return;
  constexpr std::array<int, 2> pauses = {1, 5};  // seconds: a file system may be about to come back
  for (std::size_t attempt = 0;; ++attempt) {
    try {
      return save_once();
    } catch (const UserError& error) {
      if (attempt < pauses.size()) {
        if (leader_)
          log_warning("the checkpoint of step {} could not be saved, trying again in {} s: {}", progress_.step,
                      pauses[attempt], error.what());
        std::this_thread::sleep_for(std::chrono::seconds(pauses[attempt]));
        continue;
      }
      if (last) throw;
      save_failed_ = true;
      if (leader_)
        log_warning(
            "STEP {} IS NOT SAVED: {}\n  training goes on; what it did since step {} is lost if it ends before "
            "the next save",
            progress_.step, error.what(), std::max<std::int64_t>(saved_step_, 0));
      return;
    }
  }
}

// A step's line for the progress bar.
std::string Trainer::describe(const StepMetrics& metrics) const {
  const std::string loss = std::isfinite(metrics.loss_nats) ? fmt::format("loss {:.4f}", metrics.loss_nats) : "no loss";
  return fmt::format(
      "{}  {} tokens/s{}", loss, with_thousands(static_cast<std::int64_t>(metrics.tokens_per_second)),
      save_failed_ ? fmt::format("  NOT SAVED since step {}", std::max<std::int64_t>(saved_step_, 0)) : "");
}

ExitCode Trainer::run() {
  std::optional<MetricsWriter> writer;
  if (leader_) writer.emplace(folder_ / "metrics.jsonl", progress_.step);
  BatchLoader loader(options_.data.path, loader_options(options_, mesh_, progress_.samples));
  Progress bar("train", steps_, !leader_);

  bool stopped = false;
  while (progress_.step < steps_ && !stopped) {
    StepMetrics metrics = step(loader);
    if (options_.after_step) options_.after_step();
    const bool asked = asked_to_stop();
    if (leader_) look_after_folder();
    if (metrics.step % options_.run.log_every == 0 || metrics.step == steps_) {
      const auto peak_bytes = static_cast<std::int64_t>(execution_.ledger->peak_total());
      metrics.memory_peak_bytes = static_cast<std::uint64_t>(mesh_.world().all_reduce(peak_bytes, ReduceOp::max));
      if (leader_) writer->write(metrics);
    }
    bar.update(metrics.step, describe(metrics));
    stopped = progress_.step < steps_ && asked;
    const bool due = options_.checkpoint.every > 0 && progress_.step % options_.checkpoint.every == 0;
    const bool last = stopped || progress_.step == steps_;
    if (due || last) save(last);
  }
  bar.finish();
  if (steps_done_ > 0)
    log_info(
        "bubble: {:.1f} % of a step measured (waiting for transfers, the mean over ranks and {} steps), {:.1f} % "
        "predicted",
        100.0 * bubbles_ / static_cast<double>(steps_done_), steps_done_, 100.0 * runner_.schedule_report().bubble);
  save(true);
  // A wish that came with the last step would end the next run after its first step.
  std::error_code failed;
  if (leader_) std::filesystem::remove(folder_ / "STOP", failed);
  if (failed) log_warning("{}/STOP cannot be removed: the next start will stop again", folder_.string());
  if (!stopped) return ExitCode::done;
  log_info("stopped at step {} of {} as asked; run the same command again to go on", progress_.step, steps_);
  return ExitCode::stopped;
}

}  // namespace

ModelRunnerOptions runner_options(const TrainerOptions& options, const MeshShape& shape) {
  ModelRunnerOptions runner;
  runner.layout = options.layout;
  runner.precision = options.precision;
  runner.micro_batch = {options.train.micro_batch, options.data.sequence_length};
  runner.micro_batches = static_cast<int>(options.train.global_batch / (shape.data * options.train.micro_batch));
  return runner;
}

BatchLoaderOptions loader_options(const TrainerOptions& options, const Mesh& mesh, std::int64_t first_sample) {
  BatchLoaderOptions loader;
  loader.sequence_length = options.data.sequence_length;
  loader.global_batch = options.train.global_batch;
  loader.micro_batch = options.train.micro_batch;
  loader.data_ranks = mesh.size(Axis::data);
  loader.data_rank = mesh.coordinate(Axis::data);
  const IndexRange slice =
      sequence_slice(options.data.sequence_length, mesh.size(Axis::sequence), mesh.coordinate(Axis::sequence));
  loader.slice_begin = slice.begin;
  loader.slice_end = slice.end;
  loader.seed = static_cast<std::uint64_t>(options.run.seed);
  loader.shuffle = options.data.shuffle;
  loader.reset_state_at_documents = options.data.reset_state_at_documents;
  loader.first_sample = first_sample;
  return loader;
}

void check_training(const TrainerOptions& options, const MeshShape& shape) {
  const std::int64_t batch = options.train.global_batch, micro = options.train.micro_batch;
  if (batch % (shape.data * micro) != 0)
    throw UserError("train.global_batch",
                    fmt::format("{} is not a multiple of data ranks {} x micro_batch {}", batch, shape.data, micro),
                    fmt::format("use a multiple of {}", shape.data * micro));
  const std::int64_t steps = options.train.total_steps(options.data.sequence_length);
  const LearningRateConfig& schedule = options.train.schedule;
  if (schedule.warmup_steps > steps)
    log_warning("train.schedule.warmup_steps: {} of {} steps, so that the rate never reaches its peak",
                schedule.warmup_steps, steps);
  if (schedule.kind == "wsd" && schedule.decay_steps.value_or(0) > steps)
    log_warning("train.schedule.decay_steps: {} of {} steps, so that the rate begins below its peak",
                *schedule.decay_steps, steps);
  if (schedule.minimum > options.train.optimizer.learning_rate)
    log_warning("train.schedule.min_lr: {} is above the peak, train.optimizer.lr {}", schedule.minimum,
                options.train.optimizer.learning_rate);
  const CorpusManifest manifest = read_corpus_manifest(options.data.path);
  if (manifest.vocabulary > options.model->vocabulary)
    throw UserError("model.vocabulary",
                    fmt::format("{} is smaller than the corpus's {} ({})", options.model->vocabulary,
                                manifest.vocabulary, options.data.path),
                    fmt::format("set it to {} or more", manifest.vocabulary));
}

ExitCode train(const TrainerOptions& options, Mesh& mesh, const Execution& execution, PhaseTimes& start_up) {
  check_training(options, mesh.shape());
  Communicator& ranks = mesh.world();
  start_up.run("memory estimate",
               [&] { require_memory(*options.model, runner_options(options, mesh.shape()), mesh, execution.device); });
  require_place(options, mesh);
  const auto start = Clock::now();
  start_up.run("corpus verification",
               [&] { run_agreed(ranks, [&] { verify_corpus(options.data.path, ranks.rank(), ranks.size()); }); });
  const CorpusManifest corpus = read_corpus_manifest(options.data.path);
  const std::vector<std::string> open = unprotected(corpus);
  log_info("corpus: {} tokens, {} in {:.1f} s", with_thousands(corpus.tokens()),
           open.empty() ? "checksums verified" : fmt::format("read; no checksum covers {}", join(open, ", ")),
           seconds_since(start));
  std::optional<Trainer> trainer;
  start_up.run("model allocation", [&] { trainer.emplace(options, mesh, execution); });
  trainer->start(start_up);
  return trainer->run();
}

}  // namespace fulmen
