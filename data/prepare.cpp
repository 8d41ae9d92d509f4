// Text to corpus: one thread reads documents in blocks, others tokenise, and the first writes the blocks in their
// order.
#include "data/prepare.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include <fmt/format.h>

#include "data/corpus_writer.h"
#include "data/text_files.h"
#include "data/text_source.h"
#include "data/tokenizer.h"
#include "data/tokenizer_training.h"
#include "framework/error.h"
#include "framework/files.h"
#include "framework/hash.h"
#include "framework/log.h"
#include "framework/pending_output.h"
#include "framework/progress.h"
#include "framework/random.h"
#include "framework/text.h"
#include "framework/threads.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t block_bytes = std::size_t{1} << 17;  // of text, tokenised at once
constexpr const char* model_name = "tokenizer.model";
constexpr const char* holdout_name = "holdout";

// Whether a document is held out: a pure function of (seed, document). But exactly one document among the first two is
// held out, so that neither part is ever empty.
class HoldoutChoice {
 public:
  HoldoutChoice(std::uint64_t seed, double share) : random_(seed, "holdout"), share_(share) {}
  bool holds_out(std::int64_t document) const {
    if (share_ <= 0.0) return false;
    if (document < 2) return document == static_cast<std::int64_t>(random_.bits(0) & 1);
    return random_.uniform(static_cast<std::uint64_t>(document)) < share_;
  }

 private:
  RandomStream random_;
  double share_;
};

// The tokens of a block of pieces, one after the other: few and large allocations, which threads hand back whole.
struct EncodedBlock {
  struct Piece {
    std::size_t tokens = 0;
    std::int64_t text_bytes = 0;
    bool ends_document = true;
  };
  std::vector<std::int32_t> tokens;
  std::vector<Piece> pieces;
};

EncodedBlock encode_block(const Tokenizer& tokenizer, const std::vector<TextPiece>& block) {
  EncodedBlock encoded;
  encoded.pieces.reserve(block.size());
  encoded.tokens.reserve(block_bytes);
  const auto end = tokenizer.end_of_document();
  for (const TextPiece& piece : block) {
    const std::size_t before = encoded.tokens.size();
    const std::vector<std::int32_t> ids = tokenizer.encode(piece.text);
    encoded.tokens.insert(encoded.tokens.end(), ids.begin(), ids.end());
    if (piece.ends_document && end) encoded.tokens.push_back(static_cast<std::int32_t>(*end));
    encoded.pieces.push_back(
        {encoded.tokens.size() - before, static_cast<std::int64_t>(piece.text.size()), piece.ends_document});
  }
  return encoded;
}

// The corpus being written and, when documents are held out, the held-out corpus.
class Output {
 public:
  Output(const fs::path& folder, const CorpusManifest& manifest, const PrepareOptions& options)
      : choice_(options.seed, options.holdout), train_(folder, manifest, options.shard_tokens) {
    if (options.holdout <= 0.0) return;
    ensure_writable_folder(folder / holdout_name, "the held-out corpus");
    holdout_.emplace(folder / holdout_name, manifest, options.shard_tokens);
  }

  void write(const EncodedBlock& block) {
    std::span<const std::int32_t> tokens(block.tokens);
    for (const EncodedBlock::Piece& piece : block.pieces) {
      const bool held_out = choice_.holds_out(document_);
      CorpusWriter& writer = held_out ? *holdout_ : train_;
      writer.append(tokens.first(piece.tokens));
      tokens = tokens.subspan(piece.tokens);
      (held_out ? holdout_bytes_ : train_bytes_) += piece.text_bytes;
      if (!piece.ends_document) continue;
      writer.end_document();
      ++document_;
    }
  }

  void finish(PrepareSummary& summary) {
    if (document_ == 0) throw UserError("the input", "holds no text", "give files with documents that are not blank");
    if (holdout_ && document_ < 2) {
      throw UserError("the input", "is a single document, of which no part can be held out",
                      "separate documents otherwise (--document-separator), or use --holdout 0");
    }
    summary.train = train_.finish(train_bytes_);
    if (holdout_) summary.holdout = holdout_->finish(holdout_bytes_);
  }

  std::int64_t documents() const { return document_; }

 private:
  HoldoutChoice choice_;
  CorpusWriter train_;
  std::optional<CorpusWriter> holdout_;
  std::int64_t document_ = 0, train_bytes_ = 0, holdout_bytes_ = 0;
};

// The files of a corpus, which go with it when it is replaced.
bool is_corpus_file(const std::string& name) {
  return name == "manifest.yaml" || name == model_name || name == holdout_name ||
         (name.starts_with("shard-") && name.ends_with(".h5"));
}

struct Input {
  TextListing listing;
  std::int64_t bytes = 0;
  TextSourceOptions options;

  TextSource open() const {
    std::vector<fs::path> paths;
    for (const TextFile& file : listing.files) paths.push_back(file.path);
    return {std::move(paths), options};
  }
};

Input find_input(const PrepareOptions& options) {
  if (options.inputs.empty())
    throw UserError("--input", "no file is given", "name at least one file or folder of text");
  Input input;
  input.options = {options.json_field, parse_document_separator(options.document_separator)};
  input.listing = list_text_files(options.inputs);
  for (const TextFile& file : input.listing.files) input.bytes += file.bytes;
  if (!options.quiet) log_info("{}", describe_files(input.listing));
  for (const std::string& warning : text_file_warnings(input.listing)) log_warning("{}", warning);
  return input;
}

void check_ranges(const PrepareOptions& options) {
  if (!(options.holdout >= 0.0 && options.holdout < 1.0)) {
    throw UserError("--holdout", fmt::format("{} is out of range", options.holdout), "give a share from 0 to below 1");
  }
  if (options.shard_tokens < 1) {
    throw UserError("--shard-tokens", fmt::format("{} is out of range", options.shard_tokens), "give 1 or more");
  }
  if (options.tokenizer_sample_bytes < 1) {
    throw UserError("--tokenizer-sample-bytes", fmt::format("{} is out of range", options.tokenizer_sample_bytes),
                    "give 1 or more");
  }
  if (options.vocabulary < 1 || options.vocabulary > (std::int64_t{1} << 30)) {
    throw UserError("--vocabulary", fmt::format("{} is out of range", options.vocabulary), "give 1 to 1,073,741,824");
  }
}

// Trains on what is not held out, and returns the serialised model.
std::string train_model(const Input& input, const PrepareOptions& options) {
  const HoldoutChoice choice(options.seed, options.holdout);
  SentenceSample sample(static_cast<std::size_t>(options.tokenizer_sample_bytes), options.seed);
  {
    Progress progress("reading a sample of the text", input.bytes, options.quiet);
    TextSource source = input.open();
    TextPiece piece;
    for (std::int64_t document = 0; source.next(piece); document += piece.ends_document ? 1 : 0) {
      if (!choice.holds_out(document)) sample.add(piece.text);
      progress.update(source.file_bytes_read());
    }
  }
  if (sample.text_bytes() == 0) {
    throw UserError("the input", "holds no text", "give files with documents that are not blank");
  }
  Progress progress(fmt::format("training a SentencePiece model of {} pieces", options.vocabulary), 1, options.quiet);
  std::string model = train_sentencepiece(sample.take_sentences(), options.vocabulary);
  progress.update(1);
  return model;
}

// Puts the tokeniser's file into the corpus's folder and opens it.
std::unique_ptr<Tokenizer> provide_tokenizer(const Input& input, const PrepareOptions& options,
                                             const fs::path& folder) {
  if (options.tokenizer != TokenizerKind::sentencepiece)
    return make_tokenizer(options.tokenizer, {}, options.vocabulary);
  if (!options.tokenizer_model.empty()) {
    make_tokenizer(options.tokenizer, options.tokenizer_model, 0);  // refuses what is no model, before it is copied
    write_text_atomically(folder / model_name, read_text(options.tokenizer_model));
  } else {
    write_text_atomically(folder / model_name, train_model(input, options));
  }
  return make_tokenizer(options.tokenizer, folder / model_name, 0);
}

CorpusManifest describe(const Tokenizer& tokenizer, TokenizerKind kind, const fs::path& folder) {
  CorpusManifest manifest;
  manifest.vocabulary = tokenizer.vocabulary();
  manifest.dtype = token_dtype(manifest.vocabulary);
  manifest.end_of_document = tokenizer.end_of_document();
  manifest.tokenizer = kind;
  if (kind == TokenizerKind::sentencepiece) {
    manifest.tokenizer_file = model_name;
    manifest.tokenizer_xxh3 = hash_file(folder / model_name);
  }
  return manifest;
}

std::vector<TextPiece> read_block(TextSource& source) {
  std::vector<TextPiece> block;
  TextPiece piece;
  for (std::size_t bytes = 0; bytes < block_bytes && source.next(piece);) {
    bytes += piece.text.size();
    block.push_back(std::move(piece));
  }
  return block;
}

struct Tokenized {
  std::int64_t pieces_not_utf8 = 0;  // pieces of text with bytes that are not UTF-8
  std::int64_t blank_documents = 0;
};

Tokenized tokenize(const Input& input, const Tokenizer& tokenizer, bool quiet, Output& output) {
  Progress progress("tokenising", input.bytes, quiet);
  Tokenized result;
  TextSource source = input.open();
  const auto threads = static_cast<std::size_t>(available_cores());
  std::deque<std::future<EncodedBlock>> pending;
  const auto write_first = [&] {
    output.write(pending.front().get());
    pending.pop_front();
  };
  for (std::vector<TextPiece> block = read_block(source); !block.empty(); block = read_block(source)) {
    result.pieces_not_utf8 += std::ranges::count_if(block, [](const TextPiece& piece) { return !is_utf8(piece.text); });
    pending.push_back(std::async(std::launch::async,
                                 [&tokenizer, block = std::move(block)] { return encode_block(tokenizer, block); }));
    if (pending.size() > threads) write_first();
    progress.update(source.file_bytes_read(), with_thousands(output.documents()) + " documents");
  }
  while (!pending.empty()) write_first();
  progress.update(source.file_bytes_read(), with_thousands(output.documents()) + " documents");
  result.blank_documents = source.blank_documents();
  return result;
}

void warn_of(const Tokenized& tokenized, TokenizerKind kind) {
  if (tokenized.pieces_not_utf8 > 0 && kind == TokenizerKind::sentencepiece)
    log_warning(
        "{} pieces of text hold bytes that are not UTF-8, which became U+FFFD: convert the text, or use --tokenizer "
        "bytes",
        with_thousands(tokenized.pieces_not_utf8));
  if (tokenized.blank_documents > 0)
    log_warning("{} documents of JSON lines hold nothing but white space and are left out",
                with_thousands(tokenized.blank_documents));
}

PrepareSummary count_files(const TextListing& listing) {
  PrepareSummary summary;
  for (const TextFile& file : listing.files)
    ++(file.kind == TextKind::plain ? summary.plain_files : summary.json_files);
  summary.files_left_out = static_cast<std::int64_t>(listing.left_out.size());
  return summary;
}

}  // namespace

PrepareSummary prepare_corpus(const PrepareOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  check_ranges(options);
  const Input input = find_input(options);
  PendingOutput corpus(options.output, PendingOutput::Kind::folder, options.overwrite, is_corpus_file);
  const fs::path& folder = corpus.place();
  ensure_writable_folder(folder, "the corpus");
  const std::unique_ptr<Tokenizer> tokenizer = provide_tokenizer(input, options, folder);
  PrepareSummary summary = count_files(input.listing);
  {
    Output output(folder, describe(*tokenizer, options.tokenizer, folder), options);
    const Tokenized tokenized = tokenize(input, *tokenizer, options.quiet, output);
    warn_of(tokenized, options.tokenizer);
    summary.blank_documents = tokenized.blank_documents;
    if (options.holdout > 0.0 && options.tokenizer == TokenizerKind::sentencepiece) {
      write_text_atomically(folder / holdout_name / model_name, read_text(folder / model_name));
    }
    output.finish(summary);
  }
  corpus.complete();
  summary.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return summary;
}

}  // namespace fulmen
