// fulmen prepare: text to a tokenised corpus.
#include <cstdio>

#include <nlohmann/json.hpp>

#include "data/prepare.h"
#include "framework/text.h"
#include "launch/command.h"
#include "launch/command_line.h"

namespace fulmen {

namespace {

nlohmann::ordered_json describe(const CorpusManifest& manifest) {
  return {{"tokens", manifest.tokens()},
          {"documents", manifest.documents()},
          {"text_bytes", manifest.text_bytes.value_or(0)},
          {"shards", manifest.shards.size()}};
}

TokenizerKind tokenizer_kind(const std::string& name) {
  if (name == "sentencepiece") return TokenizerKind::sentencepiece;
  if (name == "bytes") return TokenizerKind::bytes;
  throw UserError("--tokenizer", fmt::format("'{}' is unknown", name), "use sentencepiece or bytes");
}

void declare_flags(CommandLine& line) {
  line.list("input", "files or folders of text", true);
  line.option("output", "folder of the corpus; it must be empty or new", true);
  line.flag("overwrite", "replace a corpus that stands there");
  line.option("tokenizer", "sentencepiece (default) or bytes");
  line.option("tokenizer-model",
              "an existing SentencePiece model; by default a model is trained on a sample of the input");
  line.option("vocabulary", "tokens of the model to train (8000)");
  line.option("tokenizer-sample-bytes", "text to train it on (2500000)");
  line.option("json-field", "field of a .jsonl line that holds the text (text)");
  line.option("document-separator", "what ends a document of plain text: blank-line (default), line or file");
  line.option("holdout", "share of the documents held out into DIR/holdout (0)");
  line.option("shard-tokens", "tokens per shard (100000000)");
  line.option("seed", "of the choice of held-out documents (1)");
  line.flag("json", "print the result as one JSON object");
}

PrepareOptions options_of(const CommandLine& line) {
  PrepareOptions options;
  for (const std::string& path : line.paths("input")) options.inputs.emplace_back(path);
  options.output = line.path("output");
  options.overwrite = line.has("overwrite");
  options.tokenizer = tokenizer_kind(line.text("tokenizer", "sentencepiece"));
  options.tokenizer_model = line.path("tokenizer-model");
  // Flags that only a tokeniser to be trained, or a model, has a use for.
  const auto refuse_beside = [&](const char* flag, const std::string& other) {
    if (line.has(flag))
      throw UserError(fmt::format("--{}", flag), "means nothing to " + other, "leave one of the two out");
  };
  for (const char* flag : {"tokenizer-model", "vocabulary", "tokenizer-sample-bytes"}) {
    if (options.tokenizer == TokenizerKind::bytes) refuse_beside(flag, "--tokenizer bytes");
    if (line.has("tokenizer-model") && flag != std::string_view("tokenizer-model"))
      refuse_beside(flag, "--tokenizer-model, whose model is trained already");
  }
  options.vocabulary = line.integer("vocabulary", options.vocabulary, 16, 1 << 24);
  options.tokenizer_sample_bytes =
      line.integer("tokenizer-sample-bytes", options.tokenizer_sample_bytes, 1, std::int64_t{1} << 40);
  options.json_field = line.text("json-field", options.json_field);
  options.document_separator = line.text("document-separator", options.document_separator);
  options.holdout = line.number("holdout", 0.0, 0.0, 0.9);
  options.shard_tokens = line.integer("shard-tokens", options.shard_tokens, 1, std::int64_t{1} << 40);
  options.seed = static_cast<std::uint64_t>(line.integer("seed", 1, 0, std::int64_t{1} << 62));
  return options;
}

void print_json(const PrepareOptions& options, const PrepareSummary& summary) {
  const nlohmann::ordered_json result = {{"output", options.output.string()},
                                         {"vocabulary", summary.train.vocabulary},
                                         {"train", describe(summary.train)},
                                         {"holdout", describe(summary.holdout)},
                                         {"input",
                                          {{"plain_files", summary.plain_files},
                                           {"json_files", summary.json_files},
                                           {"left_out", summary.files_left_out},
                                           {"blank_documents", summary.blank_documents}}},
                                         {"seconds", summary.seconds}};
  std::printf("%s\n", result.dump().c_str());
}

void print_text(const PrepareOptions& options, const PrepareSummary& summary) {
  std::printf("%s: %s tokens in %s documents, vocabulary %s", printable(options.output.string()).c_str(),
              with_thousands(summary.train.tokens()).c_str(), with_thousands(summary.train.documents()).c_str(),
              with_thousands(summary.train.vocabulary).c_str());
  if (!summary.holdout.shards.empty())
    std::printf("; held out %s tokens", with_thousands(summary.holdout.tokens()).c_str());
  std::printf(" (%s)\n", human_duration(summary.seconds).c_str());
}

}  // namespace

ExitCode run_prepare(const std::vector<std::string>& arguments, World& world) {
  CommandLine line("prepare --input PATH... --output DIR [options]",
                   "Turns text (.txt; .jsonl, .ndjson, .json of a JSON object a line; also .gz, .dz, .zst; or folders "
                   "of them) into a tokenised "
                   "corpus. The log says what is read and what of a folder is left out.",
                   "fulmen prepare --input articles.jsonl.zst --output corpus --vocabulary 8000 --holdout 0.01");
  declare_flags(line);
  if (!line.parse(arguments)) return ExitCode::done;
  if (world.size() > 1) throw UserError("prepare", "runs as one process", "start it without mpirun");

  const PrepareOptions options = options_of(line);
  configure_threads({});
  const PrepareSummary summary = prepare_corpus(options);

  if (line.has("json"))
    print_json(options, summary);
  else
    print_text(options, summary);
  return ExitCode::done;
}

}  // namespace fulmen
