// fulmen train: trains a model, from scratch or from where it stopped.
#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "checkpoint/checkpoint.h"
#include "checkpoint/parameters.h"
#include "data/corpus.h"
#include "framework/as_error.h"
#include "framework/files.h"
#include "framework/log.h"
#include "framework/signals.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/resume.h"
#include "launch/run_configuration.h"
#include "launch/run_lock.h"
#include "launch/slurm_job.h"
#include "train/trainer.h"

namespace fulmen {

namespace {

void check_resume(const RunConfiguration& configuration, const std::filesystem::path& folder,
                  const std::vector<std::string>& allowed) {
  const CheckpointReader checkpoint(folder);
  require_same_model(checkpoint, *configuration.model);
  const CheckpointDescription& saved = checkpoint.description();
  if (saved.step == 0 || saved.configuration.empty()) return;
  const std::string corpus = corpus_identity(read_corpus_manifest(configuration.data.path));
  bool same_corpus = false;
  if (!saved.corpus.empty() && !corpus.empty()) {
    same_corpus = corpus == saved.corpus;
    if (!same_corpus && std::ranges::find(allowed, "data.path") == allowed.end())
      throw UserError("data.path",
                      fmt::format("{} is another corpus than the checkpoint was trained on", configuration.data.path),
                      "give that corpus, or permit this corpus with --allow-change data.path");
  }
  std::vector<std::string> may_differ = allowed;
  if (same_corpus) may_differ.emplace_back("data.path");  // it lies elsewhere now
  for (const std::string& difference : compare_with_checkpoint(configuration, saved.configuration, may_differ))
    log_info("changed since the checkpoint: {}", difference);
}

// For batch scripts: under srun a step's exit code can hide a 75 behind a killed rank's 137. A disk that does not take
// the file changes nothing about how the run ended.
void write_verdict(const std::filesystem::path& folder, ExitCode code, const std::string& reason) {
  const SlurmJob job = slurm_job();
  try {
    write_text_atomically(folder / "verdict.yaml",
                          fmt::format("exit_code: {}\nreason: {}\njob: \"{}\"\nattempt: \"{}\"\n",
                                      static_cast<int>(code), reason, job.id, job.attempt));
  } catch (const std::exception& error) {
    log_warning("no verdict is written: {}", error.what());
  }
}

CommandLine command_line() {
  CommandLine line(
      "train CONFIG [--set key=value]... [--resume auto|none|PATH | --rewind PATH]",
      "Trains the model that a YAML file describes; run it under mpirun or srun, or alone. SIGUSR1, SIGTERM,\n"
      "SIGINT, SIGHUP or a file STOP in the run folder end it with a checkpoint and exit code 75: start it again.",
      "mpirun -n 4 fulmen train configs/demo.yaml --set parallel.tensor=2");
  line.positional("CONFIG", "the configuration");
  line.repeatable("set", "change a key; may be repeated: train.steps=100");
  line.option("resume",
              "auto (default): the run folder's newest checkpoint if it has any. none: from the start. A checkpoint: "
              "from it, or from the folder's newest where that descends from it");
  line.option("rewind", "a checkpoint to go back to; checkpoints of later steps are set aside");
  line.repeatable("allow-change",
                  "a key that may differ from the checkpoint's configuration although it changes the training");
  line.option("print", "a key, such as run.directory: print the value that this command gives it, and do nothing else");
  return line;
}

}  // namespace

ExitCode run_train(const std::vector<std::string>& arguments, World& world) {
  CommandLine line = command_line();
  if (!line.parse(arguments)) return ExitCode::done;

  const RunConfiguration configuration = read_run_configuration(line.path("CONFIG"), line.texts("set"));
  if (line.has("print")) {
    const std::string value = value_of(configuration, line.text("print"));
    if (world.rank() == 0) std::printf("%s\n", value.c_str());
    return ExitCode::done;
  }
  const ResumeWish wish = parse_resume_wish(line.path("resume"), line.path("rewind"));
  const Device device = world.start_up().run("device", [&] { return choose_device(configuration.run.device); });
  TrainerOptions options = configuration.trainer_options(device);
  if (configuration.run.check_collectives) world.keep_order();
  Communicator& ranks = world.communicator(device, configuration.transport);
  Mesh mesh(mesh_shape(configuration.parallel, ranks.size()), ranks);
  configure_threads(configuration.run.threads);

  const std::filesystem::path folder = configuration.run.directory;
  std::optional<RunLock> lock;
  if (ranks.rank() == 0) {
    ensure_writable_folder(folder, "run.directory");
    lock.emplace(folder);
    std::filesystem::remove(folder / "verdict.yaml");
  }
  std::optional<ResumeChoice> choice;  // rank 0's, for all
  std::string chosen;
  if (ranks.rank() == 0) {
    choice.emplace(wish, folder);
    if (choice->checkpoint()) chosen = choice->checkpoint()->string();
    options.weights_are_set = [&] { choice->carry_out(); };
    options.taken_by = [&] { return lock->taken_by(); };
  }
  chosen = ranks.broadcast_text(chosen, 0);
  if (!chosen.empty()) options.resume = chosen;
  if (options.resume) check_resume(configuration, *options.resume, line.texts("allow-change"));

  catch_stop_signals();
  world.watch(folder / "flight", configuration.run.timeout, device);
  if (configuration.run.check_collectives) options.after_step = [&world] { world.check_order(); };
  ExecutionResources resources(device, configuration.run.deterministic);
  log_info("device: {}; precision {}", describe_device(device), describe_precision(options.precision));
  try {
    const ExitCode code = train(options, mesh, resources.execution(), world.start_up());
    // A launcher that ends the ranks does not leave them much time after their checkpoint. Whoever reads the verdict
    // may rely on it that no rank takes another's end for a failure.
    world.expect_end();
    if (ranks.rank() == 0)
      write_verdict(folder, code, code == ExitCode::stopped ? "stopped with a checkpoint" : "done");
    world.stop_watching();
    return code;
  } catch (const std::exception& exception) {
    const ExitCode code = as_error(exception).code();
    if (code != ExitCode::user) write_verdict(folder, code, "failed");
    throw;
  }
}

}  // namespace fulmen
