// The configuration of a run.
#include "launch/run_configuration.h"

#include <algorithm>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/gpu.h"
#include "framework/log.h"
#include "framework/outside_numbers.h"
#include "framework/text.h"
#include "framework/yaml.h"
#include "launch/shared_files.h"
#include "model/model_section.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/shard_groups.h"

namespace fulmen {

namespace {

constexpr std::int64_t many = most_counted;

void bind_parallel(Schema& schema, LayoutConfig& parallel, std::string& transport) {
  schema.add("parallel.data", parallel.data, {1, 1 << 20}, "Data-parallel ranks; auto: what the other axes leave.");
  schema.add("parallel.tensor", parallel.tensor, {1, 1 << 16}, "Ranks that share each layer; they divide the heads.");
  schema.add("parallel.tensor_sequence_split", parallel.tensor_sequence_split,
             "Between their products tensor ranks hold parts of the tokens: norms, residual additions and what "
             "pipeline stages "
             "exchange shrink by parallel.tensor.");
  schema.add(
      "parallel.communication_multiprocessors", parallel.communication_multiprocessors, {0, 64},
      "Multiprocessors of a GPU for NCCL's kernels that overlap communication of tensor ranks; concurrent products do "
      "without them. On a single host the copy engines carry it. 0: NCCL's own choice.");
  schema.add("parallel.sequence", parallel.sequence, {1, 1 << 16},
             "Ranks that share each sequence, contiguous slices of it; at most data.sequence_length.");
  schema.add("parallel.pipeline", parallel.pipeline, {1, 1 << 16}, "Pipeline stages.");
  schema.add("parallel.expert", parallel.expert, {1, 1 << 16},
             "Neighbours along data that share the experts of a layer; divides parallel.data.");
  schema.add("parallel.memory", parallel.memory, {1, 1 << 16},
             "Neighbours along data that share a pool of memory values; divides parallel.data.");
  schema.built_up_to("parallel.memory", 1, "a model family with memory layers");
  schema.add("parallel.stages", parallel.stages, {1, 100000},
             "Layers of each stage, pipeline x chunks of them, such as [9, 7]. auto: by cost, so that the longest "
             "stage is as short as can be.");
  schema.add("parallel.zero", parallel.zero, {0, 3},
             "ZeRO stage, what is sharded over the ranks along data and sequence: 1 the optimiser's state, 2 also the "
             "gradients, 3 "
             "also the weights.");
  schema.add(
      "parallel.zero_group", parallel.zero_group,
      "Ranks that hold a shard each: all, node (the ranks of a node), or a number of neighbours. Across such groups "
      "shards are "
      "copies.");
  const std::string* zero_group = &parallel.zero_group;
  schema.check("parallel.zero_group", [=] { return zero_group_problem(*zero_group); });
  schema.add(
      "parallel.bucket_elements", parallel.bucket_elements, {1, most_elements},
      "Elements that a bucket of gradients has at least, made of whole layers; from ZeRO 2 on each layer is a bucket.");
  schema.add("parallel.schedule", parallel.schedule, {{"gpipe"}, {"1f1b"}, {"interleaved"}, {"zero-bubble"}},
             "Order of forward and backward passes in the pipeline; zero-bubble: weight gradients fill the bubble.");
  schema.add("parallel.chunks", parallel.chunks, {1, 1024},
             "Model chunks per pipeline rank, with schedule interleaved or zero-bubble: chunk c of rank r is stage c x "
             "pipeline + r.");
  schema.add("parallel.recompute", parallel.recompute, {{"none"}, {"selective"}, {"full"}},
             "Which results the backward pass computes again instead of keeping; selective: attention and elementwise "
             "results, "
             "full: all but the input of each layer.");
  schema.add("parallel.overlap", parallel.overlap,
             "Communication hidden behind computation: auto (all of it), none, or some of gradients, weights, tensor, "
             "pipeline, sequence, separated by commas.");
  const std::string* overlap = &parallel.overlap;
  schema.check("parallel.overlap", [=] { return overlap_problem(*overlap); });
  schema.add("parallel.transport", transport, {{"auto"}, {"nccl"}, {"host"}},
             "How GPU ranks reach each other; auto: NCCL where each has a GPU of its own, else through host memory.");
}

void bind_data(Schema& schema, DataConfig& data) {
  schema.add_path("data.path", data.path, "Folder of a corpus made by `fulmen prepare`.");
  schema.require("data.path");
  schema.add("data.sequence_length", data.sequence_length, {1, std::int64_t{1} << 32}, "Tokens of a sample.");
  schema.add("data.shuffle", data.shuffle, "Samples in a keyed random order, a new order each epoch.");
  schema.add("data.reset_state_at_documents", data.reset_state_at_documents,
             "The attention state starts anew at each document, and the target across a boundary does not count.");
}

void bind_train(Schema& schema, TrainConfig& train) {
  schema.add("train.steps", train.steps, {0, many}, "Optimisation steps. Give this or `tokens`.");
  schema.add("train.tokens", train.tokens, {0, many}, "Tokens to train on, rounded up to whole steps.");
  schema.add("train.global_batch", train.global_batch, {1, 1 << 30}, "Sequences of one step, over all ranks.");
  schema.require("train.global_batch");
  schema.add("train.micro_batch", train.micro_batch, {1, 1 << 30},
             "Sequences that one data rank takes through the model at a time.");
  schema.require("train.micro_batch");
  schema.add("train.optimizer.kind", train.optimizer.kind, {{"adamw"}}, "The optimiser.");
  schema.add("train.optimizer.lr", train.optimizer.learning_rate, {0.0, 1e3}, "Peak learning rate.");
  schema.add("train.optimizer.betas", train.optimizer.betas, 2, {0.0, 1.0},
             "Decay of the first and the second moment.");
  schema.add("train.optimizer.eps", train.optimizer.epsilon, {0.0, 1.0}, "Added to the root of the second moment.");
  schema.add("train.optimizer.weight_decay", train.optimizer.weight_decay, {0.0, 1e3},
             "Applies to matrices and the embedding, not to vectors such as gains and LRPE's theta.");
  schema.add("train.schedule.kind", train.schedule.kind, {{"constant"}, {"linear"}, {"cosine"}, {"wsd"}},
             "Learning rate after the warm-up; wsd: stable, then linear decay over the last decay_steps.");
  schema.add("train.schedule.warmup_steps", train.schedule.warmup_steps, {0, many}, "Steps of linear warm-up.");
  schema.add("train.schedule.min_lr", train.schedule.minimum, {0.0, 1e3}, "Learning rate of the last step.");
  schema.add("train.schedule.decay_steps", train.schedule.decay_steps, {1, many},
             "Steps of wsd's decay; auto: a tenth of all.");
  schema.add("train.clip", train.clip, {0.0, 1e9}, "Largest global norm of the gradient; 0: no clipping.");
  const auto optimizer_betas = &train.optimizer.betas;
  schema.check("train.optimizer.betas", [=]() -> std::string {
    const bool below_one = std::ranges::all_of(*optimizer_betas, [](double beta) { return beta < 1.0; });
    return below_one ? "" : "each must be below 1";
  });
  const TrainConfig* values = &train;
  schema.check("train.steps", [=]() -> std::string {
    if (values->steps == 0 && values->tokens == 0) return "give train.steps or train.tokens";
    return values->steps > 0 && values->tokens > 0 ? "give train.steps or train.tokens, not both" : "";
  });
}

void bind_run(Schema& schema, CheckpointConfig& checkpoint, RunConfig& run) {
  schema.add("checkpoint.every", checkpoint.every, {0, many},
             "Steps between checkpoints; 0: only a checkpoint at the end.");
  schema.add("checkpoint.keep", checkpoint.keep, {0, many}, "Newest checkpoints to keep; 0: all.");
  schema.add("checkpoint.async", checkpoint.async, "Write while training goes on.");
  schema.built_only_false("checkpoint.async", "asynchronous checkpoints");
  schema.add_path("run.directory", run.directory, "Folder of the run: checkpoints, metrics.jsonl, configuration.yaml.");
  schema.add("run.seed", run.seed, {0, std::numeric_limits<std::int64_t>::max()},
             "Decides the initial weights and the order of samples.");
  schema.add("run.device", run.device, {{"auto"}, {"cpu"}, {"cuda"}},
             "Where tensors live; auto: a GPU for each rank where there are GPUs.");
  schema.add("run.threads", run.threads, {1, 1 << 16},
             "Threads of each rank; auto: the host's cores over its ranks. OMP_NUM_THREADS wins.");
  schema.add("run.log_every", run.log_every, {1, many}, "Steps between lines of metrics.jsonl.");
  schema.add(
      "run.timeout", run.timeout, {0.0, 1e7},
      "Seconds after which an operation between ranks that is not completed ends the job, and the rank that is missing "
      "is named; 0: never. Longer than the longest wait of one rank for another, such as for a checkpoint.");
  schema.add("run.check_collectives", run.check_collectives,
             "After each step, compare the order of operations between ranks; for finding defects.");
  schema.add("run.deterministic", run.deterministic, "Bit-identical from run to run; the CPU always is.");
}

void bind_precision(Schema& schema, PrecisionConfig& precision) {
  schema.add("precision.parameters", precision.parameters, {{"auto"}, {"bf16"}, {"fp32"}, {"fp64"}},
             "Weights and activations; auto: bf16 on a GPU, fp32 on the CPU, which has no bf16.");
  schema.add(
      "precision.master", precision.master, {{"auto"}, {"fp32"}, {"fp64"}},
      "The weights that the optimiser updates and checkpoints hold; auto: fp32 for bf16 parameters, else as they are.");
  schema.add("precision.gradients", precision.gradients, {{"auto"}, {"fp32"}, {"fp64"}},
             "Accumulated gradients; auto: fp32 for bf16 parameters, else as they are.");
}

// Each number is within its range. Products of several must be countable, too: the tokens of the whole run, and the
// elements of a micro-batch's widest tensors.
void check_products(const RunConfiguration& configuration) {
  const TrainConfig& train = configuration.train;
  const ModelConfig& model = *configuration.model;
  const std::int64_t length = configuration.data.sequence_length;
  // The steps that `tokens` comes to are rounded up.
  if (!is_product_within(most_counted, {train.global_batch, length}) ||
      !is_product_within(most_counted, {train.total_steps(length), train.global_batch, length}))
    throw UserError("train.steps, train.tokens",
                    fmt::format("{} sequences of {} tokens a step come to more than {} tokens in all",
                                train.global_batch, length, most_counted),
                    "lower train.steps or train.tokens, train.global_batch or data.sequence_length");
  if (!is_product_within(most_elements, {train.micro_batch, length, std::max(model.hidden, model.vocabulary)}))
    throw UserError("train.micro_batch",
                    fmt::format("{} sequences of {} tokens, each {} wide, are more than {} elements", train.micro_batch,
                                length, std::max(model.hidden, model.vocabulary), most_elements),
                    "lower train.micro_batch or data.sequence_length");
}

// All sections but `model`.
void bind(Schema& schema, RunConfiguration& configuration) {
  bind_parallel(schema, configuration.parallel, configuration.transport);
  bind_precision(schema, configuration.precision);
  bind_data(schema, configuration.data);
  bind_train(schema, configuration.train);
  bind_run(schema, configuration.checkpoint, configuration.run);
}

void check_known_key(const std::string& flag, const std::string& key, const RunConfiguration& run) {
  if (run.flat.contains(key)) return;
  std::vector<std::string> names;
  for (const auto& [name, value] : run.flat) names.push_back(name);
  const std::string nearest = nearest_name(key, names);
  throw UserError(fmt::format("{} {}", flag, key), "is not a key of the configuration",
                  nearest.empty() ? "docs/configuration.md lists them" : fmt::format("did you mean {}?", nearest));
}

// Keys that may differ between a run and the checkpoint it resumes without changing what is trained, to rounding.
bool is_free_to_change(const std::string& key, const RunConfiguration& run) {
  for (const char* section : {"parallel.", "checkpoint.", "run."})
    if (key.starts_with(section)) return key != "run.seed";
  if (key == "model.preset" || key == "model.initializer_std" || key == "model.pad_id" || key == "train.micro_batch")
    return true;
  // With a constant rate the number of steps only says when to end.
  return run.train.schedule.kind == "constant" && (key == "train.steps" || key == "train.tokens");
}

}  // namespace

namespace {

Precision resolve_precision(const PrecisionConfig& precision, Device device, const std::string& key) {
  const bool on_gpu = device.kind == DeviceKind::cuda;
  const std::string parameters = precision.parameters != "auto" ? precision.parameters : on_gpu ? "bf16" : "fp32";
  if (parameters == "bf16" && !on_gpu)
    throw UserError(key + ": bf16", "needs a GPU, and this run is on the CPU",
                    fmt::format("use auto, fp32 or fp64, or a GPU{}",
                                gpu::built ? "" : " and a build for it (cmake --preset cuda)"));
  const std::string wide = parameters == "bf16" ? "fp32" : parameters;
  for (const auto& [name, value] :
       {std::pair{"precision.master", precision.master}, {"precision.gradients", precision.gradients}})
    if (value != "auto" && value != wide)
      throw UserError(
          name, fmt::format("{} with parameters in {}", value, parameters),
          fmt::format("leave it out, or set it to {}{}", wide,
                      on_gpu ? ", or precision.parameters to " + value : ": on the CPU all three are the same"));
  return {parse_dtype(parameters), parse_dtype(wide)};
}

}  // namespace

TrainerOptions RunConfiguration::trainer_options(Device device) const {
  TrainerOptions options;
  options.model = model;
  options.layout = parallel;
  options.precision = precision_on(device);
  options.data = data;
  options.train = train;
  options.checkpoint = checkpoint;
  options.run = run;
  options.configuration = resolved;
  return options;
}

Precision RunConfiguration::precision_on(Device device) const {
  return resolve_precision(precision, device, "precision.parameters");
}

Precision parse_precision(const std::string& name, Device device) {
  for (const char* known : {"auto", "bf16", "fp32", "fp64"})
    if (name == known) return resolve_precision({.parameters = name}, device, "--precision");
  throw UserError("--precision", "'" + name + "' is unknown", "use auto, bf16 (on a GPU), fp32 or fp64");
}

std::string describe_precision(const Precision& precision) {
  if (precision.master() == precision.parameters) return std::string(name_of(precision.parameters));
  return fmt::format("{}, master {}, gradients {}", name_of(precision.parameters), name_of(precision.master()),
                     name_of(precision.gradients));
}

RunConfiguration parse_run_configuration(const std::string& text, const std::string& source,
                                         const std::vector<std::string>& overrides) {
  const auto word = [&](const char* name) { return given_word(name, text, source, overrides); };
  RunConfiguration configuration;
  Schema schema;
  const ModelSection model(schema, word("model.family"), word("model.preset"));
  bind(schema, configuration);
  schema.parse(text, source, overrides);
  configuration.model = model.validated();
  check_length(*configuration.model, configuration.data.sequence_length, "data.sequence_length");
  check_products(configuration);
  configuration.resolved = schema.resolved();
  configuration.flat = schema.flat();
  return configuration;
}

RunConfiguration read_run_configuration(const std::string& path, const std::vector<std::string>& overrides) {
  const std::string found = find_shared(path).string();
  if (found != path) log_info("configuration: {}", found);
  return parse_run_configuration(read_document(found), found, overrides);
}

std::shared_ptr<const ModelConfig> read_model_section(const std::filesystem::path& path) {
  const std::string text = read_document(path), source = path.string();
  const auto word = [&](const char* name) { return given_word(name, text, source, {}); };
  Schema schema;
  const ModelSection model(schema, word("model.family"), word("model.preset"));
  schema.parse(text, source);
  return model.validated();
}

std::string value_of(const RunConfiguration& configuration, const std::string& key) {
  check_known_key("--print", key, configuration);
  const std::string& value = configuration.flat.at(key);
  const YAML::Node node = load_document(value, key);
  return node.IsScalar() ? node.Scalar() : value;
}

std::string configuration_reference() {
  RunConfiguration configuration;
  Schema schema;
  bind(schema, configuration);
  return "# Configuration\n\n"
         "One YAML file, such as `configs/demo.yaml`. Generated by `fulmen doctor --configuration`; a test "
         "compares.\n\n"
         "`--set key=value` on the command line changes single keys. An unknown key is an error that names the nearest "
         "one.\n\n" +
         model_reference() + "\n" + schema.markdown();
}

std::vector<std::string> compare_with_checkpoint(const RunConfiguration& run,
                                                 const std::string& checkpoint_configuration,
                                                 const std::vector<std::string>& allowed) {
  std::vector<std::string> differences;
  const std::map<std::string, std::string> saved =
      flatten_yaml(checkpoint_configuration, "the checkpoint's configuration");
  for (const std::string& key : allowed) check_known_key("--allow-change", key, run);
  for (const auto& [key, value] : run.flat) {
    const auto before = saved.find(key);
    if (before == saved.end() || before->second == value) continue;
    differences.push_back(fmt::format("{}: {} -> {}", key, before->second, value));
    if (is_free_to_change(key, run) || std::ranges::find(allowed, key) != allowed.end()) continue;
    throw UserError(
        key,
        fmt::format("is {}, the checkpoint was trained with {}: this would change the training", value, before->second),
        fmt::format("set it back, or permit it with --allow-change {}", key));
  }
  return differences;
}

}  // namespace fulmen
