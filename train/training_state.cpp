// Saving and restoring a training run.
#include "train/training_state.h"

#include <algorithm>
#include <iterator>

#include "checkpoint/parameters.h"

namespace fulmen {

namespace {
constexpr const char* parameters_prefix = "parameters/";
constexpr const char* exp_avg_prefix = "optimizer/exp_avg/";
constexpr const char* exp_avg_sq_prefix = "optimizer/exp_avg_sq/";
}  // namespace

std::filesystem::path save_training_state(const std::filesystem::path& root, const ModelConfig& model,
                                          const std::string& configuration, const TrainingProgress& progress,
                                          const ModelRunner& runner, const Optimizer& optimizer,
                                          const std::vector<std::filesystem::path>& extra_files, Communicator& world,
                                          const TrainingCorpus& corpus) {
  CheckpointDescription description;
  description.step = progress.step;
  description.samples = progress.samples;
  description.tokens = progress.tokens;
  description.model = model.identity();
  description.corpus = corpus.identity;
  description.tokenizer = corpus.tokenizer;
  description.configuration = configuration;
  const ParameterStore& parameters = runner.parameters();
  const Execution& execution = runner.execution();
  std::vector<TensorPiece> pieces = pieces_to_save(parameters, optimizer.master().flat(), parameters_prefix, execution);
  std::ranges::move(pieces_to_save(parameters, optimizer.exp_avg(), exp_avg_prefix, execution),
                    std::back_inserter(pieces));
  std::ranges::move(pieces_to_save(parameters, optimizer.exp_avg_sq(), exp_avg_sq_prefix, execution),
                    std::back_inserter(pieces));
  SaveOptions options;
  options.extra_files = extra_files;
  return save_checkpoint(root, description, pieces, world, options);
}

void initialize_training_state(std::uint64_t seed, ModelRunner& runner, Optimizer& optimizer) {
  runner.before_weights_change();
  runner.parameters().initialize(seed, runner.execution(), optimizer.master().flat());
  optimizer.master().round(runner.execution());
  runner.weights_changed();
}

TrainingProgress load_training_state(const CheckpointReader& checkpoint, const ModelConfig& model, ModelRunner& runner,
                                     Optimizer& optimizer, Communicator& world) {
  require_same_model(checkpoint, model);
  checkpoint.verify(world);
  const ParameterStore& parameters = runner.parameters();
  const Execution& execution = runner.execution();
  runner.before_weights_change();
  load_pieces(checkpoint, parameters, optimizer.master().flat(), parameters_prefix, execution);
  optimizer.master().round(execution);
  runner.weights_changed();
  const CheckpointDescription& saved = checkpoint.description();
  if (saved.step == 0) return {};
  load_pieces(checkpoint, parameters, optimizer.exp_avg(), exp_avg_prefix, execution);
  load_pieces(checkpoint, parameters, optimizer.exp_avg_sq(), exp_avg_sq_prefix, execution);
  return {saved.step, saved.samples, saved.tokens};
}

}  // namespace fulmen
