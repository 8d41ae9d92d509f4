// Text to a tokenised corpus, in one pass whose memory does not grow with the input.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/corpus.h"

namespace fulmen {

struct PrepareOptions {
  std::vector<std::filesystem::path> inputs;  // files and folders, as list_text_files takes them
  std::filesystem::path output;
  bool overwrite = false;  // a corpus that stands there is replaced as a whole
  TokenizerKind tokenizer = TokenizerKind::sentencepiece;
  std::filesystem::path tokenizer_model;  // an existing SentencePiece model; empty: train one on a sample of the input
  std::int64_t vocabulary = 8000;         // of the model to train; for kind none, of the ids
  std::int64_t tokenizer_sample_bytes = 2'500'000;  // of text, from all over the input, to train on
  std::string json_field = "text";
  std::string document_separator = "blank-line";  // of plain text: blank-line, line, file
  double holdout = 0.0;                           // share of the documents that goes to output/holdout instead
  std::int64_t shard_tokens = 100'000'000;
  std::uint64_t seed = 1;  // of the choice of held-out documents
  bool quiet = false;
};

struct PrepareSummary {
  std::int64_t plain_files = 0, json_files = 0;  // read as plain text, as JSON lines
  std::int64_t files_left_out = 0;               // names, a folder for one
  std::int64_t blank_documents = 0;              // of JSON lines, left out
  CorpusManifest train;
  CorpusManifest holdout;  // without shards when nothing was held out
  double seconds = 0.0;
};

// Says in the log which files are read and which are left out. Writes output/ and, with a holdout, output/holdout/ (a
// corpus of its own), whole or not at all (PendingOutput). Throws UserError for unreadable or malformed input (file and
// line), for input without any text, and for what stands there already.
PrepareSummary prepare_corpus(const PrepareOptions& options);

}  // namespace fulmen
