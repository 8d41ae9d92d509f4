// Shards are appended to through small buffers; the checksum is taken of the bytes as they are handed to HDF5.
#include "data/corpus_writer.h"

#include <utility>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/hash.h"
#include "framework/hdf5.h"

namespace fulmen {

namespace {

// HDF5 reads whole chunks, and holds an index of a shard's chunks while it is written. Larger chunks keep that index
// small, smaller chunks waste less on a shuffled sample. With 16 Ki tokens shuffled samples of 2048 cost the same as
// with 8 Ki; with 32 Ki they cost about 30% more.
constexpr std::int64_t token_chunk = std::int64_t{1} << 14;
constexpr std::int64_t document_chunk = std::int64_t{1} << 12;
constexpr std::size_t buffered_bytes = std::size_t{1} << 20;
constexpr std::size_t buffered_ends = std::size_t{1} << 14;

// The shard being written.
struct OpenShard {
  OpenShard(const std::filesystem::path& path, DType dtype)
      : file(hdf5::File::create(path)),
        tokens(file.create_extendible("tokens", dtype, token_chunk)),
        document_ends(file.create_extendible("document_ends", DType::uint64, document_chunk)) {}

  hdf5::File file;
  hdf5::Dataset tokens;
  hdf5::Dataset document_ends;
  Hasher hasher;
  Hasher ends_hasher;
};

}  // namespace

DType token_dtype(std::int64_t vocabulary) { return vocabulary <= 65536 ? DType::uint16 : DType::uint32; }

struct CorpusWriter::State {
  std::filesystem::path folder;
  CorpusManifest manifest;
  std::int64_t shard_tokens = 0;
  std::unique_ptr<OpenShard> shard;
  std::vector<std::byte> raw;       // tokens not yet written
  std::vector<std::uint64_t> ends;  // document ends not yet written
  std::int64_t documents = 0;
  std::int64_t document_tokens = 0;  // of the current document

  CorpusShard& entry() { return manifest.shards.back(); }

  void open_next() {
    CorpusShard next;
    next.file = fmt::format("shard-{:05}.h5", manifest.shards.size());
    shard = std::make_unique<OpenShard>(folder / next.file, manifest.dtype);
    manifest.shards.push_back(std::move(next));
  }

  template <class Stored>
  void buffer(std::span<const std::int32_t> tokens) {
    const std::size_t before = raw.size();
    raw.resize(before + tokens.size() * sizeof(Stored));
    auto* out = reinterpret_cast<Stored*>(raw.data() + before);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      FULMEN_CHECK(tokens[i] >= 0 && tokens[i] < manifest.vocabulary, "token {} in a vocabulary of {}", tokens[i],
                   manifest.vocabulary);
      out[i] = static_cast<Stored>(tokens[i]);
    }
  }

  void write_tokens() {
    if (raw.empty()) return;
    shard->hasher.update(raw.data(), raw.size());
    shard->tokens.append(
        Tensor(raw.data(), manifest.dtype, {static_cast<std::int64_t>(raw.size() / size_of(manifest.dtype))}));
    raw.clear();
  }

  void write_ends() {
    if (ends.empty()) return;
    shard->ends_hasher.update(ends.data(), ends.size() * sizeof(ends[0]));
    shard->document_ends.append(Tensor(ends.data(), DType::uint64, {static_cast<std::int64_t>(ends.size())}));
    ends.clear();
  }

  void close_shard() {
    write_tokens();
    write_ends();
    entry().xxh3 = shard->hasher.digest();
    entry().document_ends_xxh3 = shard->ends_hasher.digest();
    // The file is closed for good once no dataset of it is open.
    shard->tokens.close();
    shard->document_ends.close();
    shard->file.close();
    flush_to_disk(shard->file.path());
    shard.reset();
  }
};

CorpusWriter::CorpusWriter(std::filesystem::path folder, CorpusManifest manifest, std::int64_t shard_tokens)
    : state_(std::make_unique<State>()) {
  FULMEN_CHECK(manifest.shards.empty() && shard_tokens >= 1, "shards of {} tokens", shard_tokens);
  FULMEN_CHECK(manifest.dtype == DType::uint32 || (manifest.dtype == DType::uint16 && manifest.vocabulary <= 65536),
               "a vocabulary of {} in {}", manifest.vocabulary, name_of(manifest.dtype));
  state_->folder = std::move(folder);
  state_->manifest = std::move(manifest);
  state_->shard_tokens = shard_tokens;
}
CorpusWriter::~CorpusWriter() = default;
CorpusWriter::CorpusWriter(CorpusWriter&&) noexcept = default;

void CorpusWriter::append(std::span<const std::int32_t> tokens) {
  State& state = *state_;
  const std::size_t at_once = buffered_bytes / size_of(state.manifest.dtype);
  while (!tokens.empty()) {
    if (!state.shard) state.open_next();
    const auto piece = tokens.first(std::min(tokens.size(), at_once));
    if (state.manifest.dtype == DType::uint16) {
      state.buffer<std::uint16_t>(piece);
    } else {
      state.buffer<std::uint32_t>(piece);
    }
    state.entry().tokens += static_cast<std::int64_t>(piece.size());
    state.document_tokens += static_cast<std::int64_t>(piece.size());
    if (state.raw.size() >= buffered_bytes) state.write_tokens();
    tokens = tokens.subspan(piece.size());
  }
}

void CorpusWriter::end_document() {
  State& state = *state_;
  if (state.document_tokens == 0) return;
  state.document_tokens = 0;
  ++state.documents;
  ++state.entry().documents;
  state.ends.push_back(static_cast<std::uint64_t>(state.entry().tokens));
  if (state.ends.size() == buffered_ends) state.write_ends();
  if (state.entry().tokens >= state.shard_tokens) state.close_shard();
}

std::int64_t CorpusWriter::documents() const { return state_->documents; }

CorpusManifest CorpusWriter::finish(std::optional<std::int64_t> text_bytes) {
  State& state = *state_;
  end_document();
  if (state.shard) state.close_shard();
  state.manifest.text_bytes = text_bytes;
  write_corpus_manifest(state.folder, state.manifest);
  return state.manifest;
}

}  // namespace fulmen
