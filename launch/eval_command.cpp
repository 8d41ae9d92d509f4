// fulmen eval: loss and perplexity over all samples of a corpus.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <numbers>

#include <nlohmann/json.hpp>

#include "checkpoint/agreement.h"
#include "checkpoint/parameters.h"
#include "data/baseline.h"
#include "data/batch_loader.h"
#include "framework/bfloat16.h"
#include "framework/configuration.h"
#include "framework/files.h"
#include "framework/hdf5.h"
#include "framework/pending_output.h"
#include "framework/progress.h"
#include "framework/text.h"
#include "framework/transfer.h"
#include "launch/command.h"
#include "launch/command_line.h"
#include "launch/run_configuration.h"
#include "train/model_runner.h"
#include "train/preflight.h"

namespace fulmen {

namespace {

constexpr std::int64_t longest_sequence = std::int64_t{1} << 32;

struct EvalOptions {
  std::filesystem::path data;
  std::int64_t samples = 0;  // of the corpus
  std::int64_t sequence_length = 0;
  std::int64_t micro_batch = 0;
  bool reset_state_at_documents = true;
  std::string dump_logits;
};

// The slice of samples [first, end) of the corpus, in micro-batches; rows past the end have weight 0.
std::vector<Batch> read_batches(const CorpusReader& corpus, const EvalOptions& options, const IndexRange& slice,
                                std::int64_t first, std::int64_t end) {
  std::vector<Batch> batches;
  for (std::int64_t sample = first; sample < end; sample += options.micro_batch) {
    batches.push_back(make_batch(options.micro_batch, options.sequence_length, slice.begin, slice.end));
    Batch& batch = batches.back();
    for (std::int64_t row = 0; row < options.micro_batch; ++row) {
      fill_row(corpus, std::min(sample + row, end - 1), options.reset_state_at_documents, batch, row);
      if (sample + row < end) continue;
      const auto begin = batch.weights.begin() + row * batch.length;
      std::fill(begin, begin + batch.length, 0.0f);
    }
  }
  return batches;
}

// Writes each micro-batch's logits as it passes: dataset /logits [samples, length, vocabulary], fp64 or fp32.
class LogitsFile {
 public:
  LogitsFile(PendingOutput& output, const EvalOptions& options, ModelRunner& runner, const ModelConfig& model,
             const Execution& execution)
      : output_(output),
        file_(hdf5::File::create(output.place())),
        logits_(execution.device, runner.parameters().precision().parameters,
                {options.micro_batch * options.sequence_length, model.vocabulary}, MemoryKind::workspace,
                *execution.ledger),
        host_(logits_.view().bytes()),
        dataset_(file_.create_dataset("/logits", accumulation_dtype(logits_.view().dtype()),
                                      {options.samples, options.sequence_length, model.vocabulary})),
        options_(options),
        runner_(runner) {
    runner.executor().on_forward = [this](int, int slot) { write(slot); };
  }
  ~LogitsFile() { runner_.executor().on_forward = nullptr; }
  void close() {
    dataset_.close();
    file_.close();
    output_.complete();
  }

 private:
  void write(int slot) {
    runner_.stage().logits(slot, logits_);
    const Tensor& logits = logits_.view();
    copy_to_host(runner_.execution(), logits, host_.data());
    void* data = host_.data();
    if (logits.dtype() == DType::bf16) {
      const auto* narrow = reinterpret_cast<const BFloat16*>(host_.data());
      wide_.resize(static_cast<std::size_t>(logits.elements()));
      std::transform(narrow, narrow + logits.elements(), wide_.begin(), to_float);
      data = wide_.data();
    }
    const Tensor all(data, accumulation_dtype(logits.dtype()),
                     {options_.micro_batch, options_.sequence_length, logits.size(1)});
    const std::int64_t rows = std::min(options_.micro_batch, options_.samples - next_);
    dataset_.write({next_, 0, 0}, all.slice(0, 0, rows));
    next_ += rows;
  }

  PendingOutput& output_;
  hdf5::File file_;
  std::int64_t next_ = 0;
  OwnedTensor logits_;
  std::vector<std::byte> host_;
  std::vector<float> wide_;  // of bf16 logits
  hdf5::Dataset dataset_;
  const EvalOptions& options_;
  ModelRunner& runner_;
};

void print_result(const nlohmann::ordered_json& result, bool json) {
  if (json) {
    std::printf("%s\n", result.dump().c_str());
    return;
  }
  std::printf("loss        %.4f nats (%.4f bits) per token over %s tokens, perplexity %.2f\n",
              result["loss_nats"].get<double>(), result["loss_bits"].get<double>(),
              with_thousands(static_cast<std::int64_t>(result["tokens"].get<double>())).c_str(),
              result["perplexity"].get<double>());
  if (result.contains("bits_per_byte"))
    std::printf("            %.4f bits per byte of text\n", result["bits_per_byte"].get<double>());
  if (result.contains("uniform_nats")) std::printf("uniform     %.4f nats\n", result["uniform_nats"].get<double>());
  if (result.contains("unigram_nats")) std::printf("unigram     %.4f nats\n", result["unigram_nats"].get<double>());
}

// The settings of the checkpoint's own training, where it says.
EvalOptions options_from(const CheckpointDescription& saved) {
  EvalOptions options;
  if (saved.configuration.empty()) return options;
  const std::string source = "the checkpoint's configuration";
  const auto flat = flatten_yaml(saved.configuration, source);
  if (const auto found = flat.find("data.sequence_length"); found != flat.end()) {
    const std::string& text = found->second;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), options.sequence_length);
    if (error != std::errc{} || end != text.data() + text.size() || options.sequence_length < 1 ||
        options.sequence_length > longest_sequence)
      throw UserError(source,
                      fmt::format("data.sequence_length is '{}', not an integer from 1 to {}", text, longest_sequence),
                      "restore the checkpoint, or give --sequence-length");
  }
  if (const auto found = flat.find("data.reset_state_at_documents"); found != flat.end())
    options.reset_state_at_documents = found->second == "true";
  return options;
}

CommandLine command_line() {
  CommandLine line(
      "eval --checkpoint DIR --data DIR [options]",
      "Mean loss over all samples of a corpus, and its perplexity. Under mpirun the samples are shared out.",
      "fulmen eval --checkpoint runs/demo/checkpoints --data corpus/holdout --baseline corpus");
  line.option("checkpoint", "a checkpoint, a folder of them or a run (then the newest)", true);
  line.option("data", "a corpus", true);
  line.option("sequence-length", "tokens of a sample (the checkpoint's own, or 2048)");
  line.option("micro-batch", "samples at a time (as many as make about 4096 tokens)");
  line.option("tensor", "tensor-parallel ranks (1)");
  line.option("sequence", "ranks that share each sample (1)");
  line.option("pipeline", "pipeline stages (1)");
  line.option("device", "auto (default), cpu or cuda");
  line.option("precision", "auto (default: bf16 on a GPU, else fp32), bf16, fp32 or fp64");
  line.option("baseline", "a training corpus: adds the losses of a uniform and of its unigram model");
  line.option("dump-logits",
              "write all logits to this HDF5 file, /logits [samples, length, vocabulary]; one rank only");
  line.flag("overwrite", "replace the file of --dump-logits that stands there");
  line.flag("json", "print the result as one JSON object");
  return line;
}

// That the corpus holds tokens of the checkpoint's tokeniser, as far as both say.
void check_tokens(const CorpusReader& corpus, const std::filesystem::path& folder, const CheckpointReader& checkpoint,
                  const ModelConfig& model) {
  const CorpusManifest& manifest = corpus.manifest();
  if (manifest.vocabulary > model.vocabulary)
    throw UserError(folder.string(),
                    fmt::format("has a vocabulary of {}, the model only {}", manifest.vocabulary, model.vocabulary),
                    "use a corpus made with the model's tokeniser");
  const auto tokenizer = checkpoint.tokenizer_file();
  if (!tokenizer) return;
  const bool other_kind =
      manifest.tokenizer != TokenizerKind::sentencepiece && manifest.tokenizer != TokenizerKind::none;
  const std::string& file = manifest.tokenizer_file;
  if (other_kind || (!file.empty() && read_text(folder / file) != read_text(*tokenizer)))
    throw UserError(folder.string(), "was made with another tokeniser than the checkpoint has",
                    "prepare the text with --tokenizer-model and the checkpoint's own: " + tokenizer->string());
}

// Flags win over what the checkpoint's own training used.
EvalOptions read_options(const CommandLine& line, const CheckpointDescription& saved, const CorpusReader& corpus) {
  EvalOptions options = options_from(saved);
  options.data = line.path("data");
  options.dump_logits = line.path("dump-logits");
  if (options.sequence_length == 0) options.sequence_length = 2048;
  options.sequence_length = line.integer("sequence-length", options.sequence_length, 1, longest_sequence);
  options.samples = corpus.samples(options.sequence_length);
  if (options.samples == 0)
    throw UserError(options.data.string(),
                    fmt::format("its {} tokens are less than one sample of {} and its target", corpus.tokens(),
                                options.sequence_length),
                    "use a shorter --sequence-length");
  options.micro_batch =
      line.integer("micro-batch", std::max<std::int64_t>(4096 / options.sequence_length, 1), 1, 1 << 20);
  options.micro_batch = std::min(options.micro_batch, options.samples);
  return options;
}

// Whether both corpora say what their tokens are, and not the same.
bool have_other_tokens(const std::filesystem::path& a, const CorpusManifest& of_a, const std::filesystem::path& b,
                       const CorpusManifest& of_b) {
  if (of_a.tokenizer == TokenizerKind::none || of_b.tokenizer == TokenizerKind::none) return false;
  if (of_a.tokenizer != of_b.tokenizer) return true;
  if (of_a.tokenizer_file.empty() || of_b.tokenizer_file.empty()) return false;
  return read_text(a / of_a.tokenizer_file) != read_text(b / of_b.tokenizer_file);
}

std::optional<CorpusReader> open_baseline(const CommandLine& line, const CorpusReader& corpus) {
  if (!line.has("baseline")) return std::nullopt;
  std::optional<CorpusReader> baseline(line.path("baseline"));
  if (have_other_tokens(line.path("baseline"), baseline->manifest(), line.path("data"), corpus.manifest()))
    throw UserError(fmt::format("--baseline {}", line.text("baseline")),
                    fmt::format("was made with another tokeniser than {}", line.text("data")),
                    "give the training corpus that this corpus belongs to");
  if (baseline->manifest().vocabulary > corpus.manifest().vocabulary)
    throw UserError("--baseline",
                    fmt::format("has a vocabulary of {}, the corpus {}", baseline->manifest().vocabulary,
                                corpus.manifest().vocabulary),
                    "give the training corpus that this corpus belongs to");
  return baseline;
}

// Over all samples and ranks. Collective.
StepLoss evaluate(ModelRunner& runner, const CorpusReader& corpus, const EvalOptions& options, Mesh& mesh) {
  const IndexRange mine = partition(options.samples, mesh.size(Axis::data), mesh.coordinate(Axis::data));
  const IndexRange slice =
      sequence_slice(options.sequence_length, mesh.size(Axis::sequence), mesh.coordinate(Axis::sequence));
  constexpr std::int64_t batches_at_a_time = 8;
  const std::int64_t stride = batches_at_a_time * options.micro_batch;
  runner.reset_loss();
  Progress bar("eval", mine.size(), mesh.world().rank() != 0);
  for (std::int64_t first = mine.begin; first < mine.end; first += stride) {
    const std::int64_t end = std::min(mine.end, first + stride);
    runner.evaluate(read_batches(corpus, options, slice, first, end));
    bar.update(end - mine.begin);
  }
  bar.finish();
  return runner.reduce_loss();
}

// On all ranks, or on none.
void load_weights(const CheckpointReader& checkpoint, const ModelConfig& model, ModelRunner& runner,
                  Communicator& ranks) {
  run_agreed(ranks, [&] { require_same_model(checkpoint, model); });
  checkpoint.verify(ranks);
  run_agreed(ranks, [&] {
    load_pieces(checkpoint, runner.parameters(), runner.parameters().flat_weights(), "parameters/", runner.execution());
  });
}

// A loss that is none is no result.
void check_loss(const StepLoss& loss, const EvalOptions& options, std::int64_t step) {
  if (loss.targets == 0.0)
    throw UserError(options.data.string(), "none of its targets counts: each document has but one token",
                    "use a corpus of longer documents");
  if (!std::isfinite(loss.loss_nats))
    throw DivergedError(
        fmt::format("the loss is {}: the weights of step {} are of a training that diverged, or damaged\n"
                    "  -> take an earlier checkpoint",
                    loss.loss_nats, step));
}

nlohmann::ordered_json describe_result(const StepLoss& loss, const EvalOptions& options, const CorpusReader& corpus,
                                       const std::optional<CorpusReader>& baseline, std::int64_t step) {
  const double bits = loss.loss_nats / std::numbers::ln2;
  nlohmann::ordered_json result = {
      {"loss_nats", loss.loss_nats}, {"loss_bits", bits},          {"perplexity", std::exp(loss.loss_nats)},
      {"tokens", loss.targets},      {"samples", options.samples}, {"step", step}};
  const CorpusManifest& manifest = corpus.manifest();
  if (const auto bytes = manifest.text_bytes)
    result["bits_per_byte"] = bits * static_cast<double>(corpus.tokens()) / static_cast<double>(*bytes);
  if (baseline) {
    result["uniform_nats"] = std::log(static_cast<double>(manifest.vocabulary));
    result["unigram_nats"] = unigram_loss_nats(*baseline, corpus, manifest.vocabulary);
  }
  return result;
}

}  // namespace

ExitCode run_eval(const std::vector<std::string>& arguments, World& world) {
  CommandLine line = command_line();
  if (!line.parse(arguments)) return ExitCode::done;
  const Device device = choose_device(line.text("device", "auto"), "--device");
  const Precision precision = parse_precision(line.text("precision", "auto"), device);
  Communicator& ranks = world.communicator(device, "auto");
  LayoutConfig layout;
  layout.tensor = line.integer("tensor", 1, 1, 1 << 16);
  layout.sequence = line.integer("sequence", 1, 1, 1 << 16);
  layout.pipeline = line.integer("pipeline", 1, 1, 1 << 16);
  Mesh mesh(mesh_shape(layout, ranks.size()), ranks);
  configure_threads({});
  const CorpusReader corpus(line.path("data"));
  std::shared_ptr<const ModelConfig> model;
  EvalOptions options;
  with_checkpoint(line.path("checkpoint"), ranks, [&](const CheckpointReader& checkpoint) {
    run_agreed(ranks, [&] {
      const CheckpointDescription& saved = checkpoint.description();
      model = ModelConfig::from_identity(saved.model, checkpoint.folder().string());
      check_tokens(corpus, line.path("data"), checkpoint, *model);
      options = read_options(line, saved, corpus);
      check_length(*model, options.sequence_length, "--sequence-length");
    });
  });
  run_agreed(ranks, [&] { verify_corpus(line.path("data"), ranks.rank(), ranks.size()); });
  const std::optional<CorpusReader> baseline = open_baseline(line, corpus);
  if (!options.dump_logits.empty() && ranks.size() > 1) throw UserError("--dump-logits", "works on one rank only");
  std::optional<PendingOutput> output;
  if (line.has("dump-logits")) output.emplace(options.dump_logits, PendingOutput::Kind::file, line.has("overwrite"));

  ModelRunnerOptions runner_options;
  runner_options.layout = layout;
  runner_options.layout.recompute = "full";  // no backward pass will ask for what layers made
  runner_options.precision = precision;
  runner_options.micro_batch = {options.micro_batch, options.sequence_length};
  require_memory(*model, runner_options, mesh, device, MemoryUse::evaluation);
  ExecutionResources resources(device);
  ModelRunner runner(*model, runner_options, mesh, resources.execution());
  std::int64_t step = 0;
  with_checkpoint(line.path("checkpoint"), ranks, [&](const CheckpointReader& checkpoint) {
    load_weights(checkpoint, *model, runner, ranks);
    step = checkpoint.description().step;
  });
  std::optional<LogitsFile> logits;
  if (output) logits.emplace(*output, options, runner, *model, resources.execution());
  const StepLoss loss = evaluate(runner, corpus, options, mesh);
  if (logits) logits->close();
  check_loss(loss, options, step);
  if (ranks.rank() != 0) return ExitCode::done;
  print_result(describe_result(loss, options, corpus, baseline, step), line.has("json"));
  return ExitCode::done;
}

}  // namespace fulmen
