// The corpus format, version 2: a folder with `manifest.yaml`, the tokeniser's own file and HDF5 shards. A shard has
// `/tokens` (uint16 or uint32, chunked) and `/document_ends` (uint64, increasing, the last equal to the token count).
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "framework/dtype.h"

namespace fulmen {

enum class TokenizerKind { sentencepiece, bytes, none };
std::string_view name_of(TokenizerKind kind);  // as in the manifest

struct CorpusShard {
  std::string file;  // relative to the folder
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::optional<std::string> xxh3 = {};                // of the token bytes
  std::optional<std::string> document_ends_xxh3 = {};  // of the bytes of /document_ends, as uint64
};

struct CorpusManifest {
  std::int64_t vocabulary = 0;
  DType dtype = DType::uint16;
  std::optional<std::int64_t> end_of_document;
  TokenizerKind tokenizer = TokenizerKind::none;
  std::string tokenizer_file;                 // empty when there is none
  std::optional<std::string> tokenizer_xxh3;  // of that file
  std::vector<CorpusShard> shards;
  bool sealed = false;                     // read with a checksum of the manifest itself: version 1 had none
  std::optional<std::int64_t> text_bytes;  // bytes of the text that became these tokens, when known
  std::int64_t tokens() const;
  std::int64_t documents() const;
};

// Throws UserError when the manifest is missing, malformed, of another format or version, or incomplete.
CorpusManifest read_corpus_manifest(const std::filesystem::path& folder);
// The identity of the corpus wherever it lies: a hash of the checksums of its shards in their order. Empty where a
// shard has none.
std::string corpus_identity(const CorpusManifest& manifest);
// Which parts no checksum covers, for people: "the document ends of 3 shards". Empty where `prepare` made it.
std::vector<std::string> unprotected(const CorpusManifest& manifest);
void write_corpus_manifest(const std::filesystem::path& folder, const CorpusManifest& manifest);

// Random access to the stream of all shards in order. Holds open files and a sparse index of the document ends, nothing
// that grows with the corpus. Not for use by two threads at once.
class CorpusReader {
 public:
  // Opens the shards and compares their token and document counts with the manifest. Throws UserError naming the shard.
  explicit CorpusReader(const std::filesystem::path& folder);
  ~CorpusReader();
  CorpusReader(CorpusReader&&) noexcept;

  const CorpusManifest& manifest() const;
  std::int64_t tokens() const;
  // Samples of this length: (tokens - 1) / length.
  std::int64_t samples(std::int64_t length) const;
  // Tokens [begin, begin + out.size()) of the stream. Throws UserError for a token id beyond the vocabulary.
  void read(std::int64_t begin, std::span<std::int32_t> out) const;
  // Positions p in (begin, end) of the stream at which a document starts, increasing. Shards begin documents.
  std::vector<std::int64_t> document_starts(std::int64_t begin, std::int64_t end) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Reads shards part, part + parts, ... and compares their checksums with the manifest's, where it has them; also every
// token id with the vocabulary, and that document ends increase. Part 0 compares the tokeniser's file, too. Throws
// UserError naming the file. The defaults mean all shards.
void verify_corpus(const std::filesystem::path& folder, int part = 0, int parts = 1);

}  // namespace fulmen
