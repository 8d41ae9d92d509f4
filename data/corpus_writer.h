// Writes a corpus shard by shard as its tokens come, holding about a megabyte of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "data/corpus.h"

namespace fulmen {

// uint16 as long as every id of the vocabulary fits.
DType token_dtype(std::int64_t vocabulary);

class CorpusWriter {
 public:
  // `manifest` says all but the shards, which are counted here; its dtype must hold its vocabulary. A shard is closed
  // at the first document end at or after `shard_tokens` tokens. The folder must exist. The manifest is written by
  // finish(), so a folder that was not finished is no corpus.
  CorpusWriter(std::filesystem::path folder, CorpusManifest manifest, std::int64_t shard_tokens);
  ~CorpusWriter();
  CorpusWriter(CorpusWriter&&) noexcept;

  // Tokens of the current document, in [0, vocabulary). Throws UserError when the disk refuses.
  void append(std::span<const std::int32_t> tokens);
  // Ends the current document. One without tokens does not exist.
  void end_document();
  std::int64_t documents() const;  // ended so far
  // Ends an open document, closes the last shard and writes the manifest.
  CorpusManifest finish(std::optional<std::int64_t> text_bytes);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen
