// Random access to the tokens and document boundaries of all shards, and the check of their checksums. Shards are
// opened when needed and a bounded number of them is kept open.
#include <algorithm>
#include <array>
#include <utility>

#include <fmt/format.h>

#include "data/corpus.h"
#include "framework/error.h"
#include "framework/hash.h"
#include "framework/hdf5.h"
#include "framework/text.h"

namespace fulmen {

namespace {

constexpr std::size_t most_open_shards = 64;
constexpr std::int64_t tokens_at_once = std::int64_t{1} << 16;  // of one HDF5 read: the raw buffer stays in cache
constexpr std::int64_t ends_per_block = 4096;                   // of the sparse index
constexpr std::size_t cached_blocks = 64;                       // 2 MiB of document ends

constexpr const char* restore = "restore the shard, or make the corpus anew with 'fulmen prepare'";

struct OpenShard {
  hdf5::File file;
  hdf5::Dataset tokens;
  hdf5::Dataset document_ends;
  std::uint64_t last_used = 0;
};

// One shard of the stream: where it begins, and what is known of it without its being open.
struct ShardPlace {
  std::filesystem::path path;
  std::int64_t first_token = 0;
  std::int64_t tokens = 0;
  std::int64_t documents = 0;
  std::unique_ptr<OpenShard> open;
  std::vector<std::uint64_t> sparse_ends;  // the first document end of each block; filled at the first question
};

void check_length(const std::string& where, const hdf5::Dataset& dataset, std::string_view name, std::int64_t expected,
                  std::string_view of_what) {
  if (dataset.shape().size() != 1) {
    throw UserError(
        where, fmt::format("/{} has shape {}, but must have one dimension", name, to_string(dataset.shape())), restore);
  }
  if (dataset.shape()[0] == expected) return;
  throw UserError(where,
                  fmt::format("/{} holds {} {}, but the manifest says {}", name, dataset.shape()[0], of_what, expected),
                  restore);
}

// Opens a shard and compares it with the manifest: types, counts, and the end of the last document.
std::unique_ptr<OpenShard> open_shard(const std::filesystem::path& path, const CorpusShard& shard, DType dtype) {
  const std::string where = path.string();
  auto opened = std::make_unique<OpenShard>();
  opened->file = hdf5::File::open(path);
  opened->tokens = opened->file.dataset("tokens");
  opened->document_ends = opened->file.dataset("document_ends");
  if (opened->tokens.dtype() != dtype) {
    throw UserError(
        where,
        fmt::format("/tokens holds {}, but the manifest says {}", name_of(opened->tokens.dtype()), name_of(dtype)),
        restore);
  }
  if (is_floating(opened->document_ends.dtype())) {
    throw UserError(where, "/document_ends does not hold integers", restore);
  }
  check_length(where, opened->tokens, "tokens", shard.tokens, "tokens");
  check_length(where, opened->document_ends, "document_ends", shard.documents, "documents");
  if (shard.documents > 0) {
    std::uint64_t last = 0;
    opened->document_ends.read({shard.documents - 1}, Tensor(&last, DType::uint64, {1}));
    if (last != static_cast<std::uint64_t>(shard.tokens)) {
      throw UserError(where, fmt::format("its last document ends at {}, but it holds {} tokens", last, shard.tokens),
                      restore);
    }
  }
  return opened;
}

// Widens the tokens; returns the largest. Written so that it vectorises.
template <class Stored>
std::uint32_t widen(const Stored* raw, std::int64_t count, std::int32_t* out) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t token = raw[i];
    largest = std::max(largest, token);
    out[i] = static_cast<std::int32_t>(token);
  }
  return largest;
}

[[noreturn]] void throw_beyond_vocabulary(const std::filesystem::path& path, std::int64_t first,
                                          std::span<const std::int32_t> tokens, std::int64_t vocabulary) {
  const auto beyond = [&](std::int32_t token) { return static_cast<std::uint32_t>(token) >= vocabulary; };
  const auto found = std::find_if(tokens.begin(), tokens.end(), beyond);
  FULMEN_CHECK(found != tokens.end(), "no token beyond the vocabulary");
  throw UserError(path.string(),
                  fmt::format("token {} at position {} is beyond the vocabulary of {}",
                              static_cast<std::uint32_t>(*found), first + (found - tokens.begin()), vocabulary),
                  "the shard is damaged or was made with another tokeniser; make the corpus anew");
}

// Reads tokens [begin, begin + out.size()) of one shard by way of `raw`, checking every id. When there is a hasher, it
// is given the stored bytes.
void read_tokens(const ShardPlace& shard, const OpenShard& open, std::int64_t vocabulary, std::int64_t begin,
                 std::span<std::int32_t> out, std::vector<std::byte>& raw, Hasher* hasher) {
  const DType dtype = open.tokens.dtype();
  raw.resize(static_cast<std::size_t>(tokens_at_once) * size_of(dtype));
  for (std::size_t done = 0; done < out.size();) {
    const auto count = std::min(tokens_at_once, static_cast<std::int64_t>(out.size() - done));
    const std::int64_t first = begin + static_cast<std::int64_t>(done);
    const Tensor stored(raw.data(), dtype, {count});
    open.tokens.read({first}, stored);
    if (hasher != nullptr) hasher->update(raw.data(), stored.bytes());
    const auto piece = out.subspan(done, static_cast<std::size_t>(count));
    const std::uint32_t largest = dtype == DType::uint16 ? widen(stored.as<std::uint16_t>(), count, piece.data())
                                                         : widen(stored.as<std::uint32_t>(), count, piece.data());
    if (largest >= vocabulary) throw_beyond_vocabulary(shard.path, first, piece, vocabulary);
    done += piece.size();
  }
}

// Block `block` of a shard's document ends.
std::vector<std::uint64_t> read_ends(const hdf5::Dataset& dataset, std::int64_t block) {
  const std::int64_t first = block * ends_per_block;
  const std::int64_t count = std::min(ends_per_block, dataset.shape()[0] - first);
  std::vector<std::uint64_t> ends(static_cast<std::size_t>(count));
  dataset.read({first}, Tensor(ends.data(), DType::uint64, {count}));
  return ends;
}

// The first end of each block. Reads all ends of the shard and checks that they increase. When there is a hasher, it is
// given their bytes.
std::vector<std::uint64_t> index_ends(const std::filesystem::path& path, const hdf5::Dataset& dataset, Hasher* hasher) {
  std::vector<std::uint64_t> sparse;
  std::uint64_t previous = 0;
  for (std::int64_t block = 0; block * ends_per_block < dataset.shape()[0]; ++block) {
    const std::vector<std::uint64_t> ends = read_ends(dataset, block);
    if (hasher != nullptr) hasher->update(ends.data(), ends.size() * sizeof(ends[0]));
    for (std::size_t i = 0; i < ends.size(); ++i) {
      if (ends[i] <= previous) {
        throw UserError(path.string(),
                        fmt::format("/document_ends does not increase: document {} ends at {} after {}",
                                    block * ends_per_block + static_cast<std::int64_t>(i), ends[i], previous),
                        restore);
      }
      previous = ends[i];
    }
    sparse.push_back(ends.front());
  }
  return sparse;
}

// Some document ends of one shard, from index block * ends_per_block on.
struct EndsBlock {
  std::size_t shard = 0;
  std::int64_t block = -1;
  std::vector<std::uint64_t> ends;
};

}  // namespace

struct CorpusReader::State {
  CorpusManifest manifest;
  std::int64_t tokens = 0;
  std::vector<ShardPlace> shards;
  std::vector<std::size_t> open_shards;
  std::uint64_t uses = 0;
  std::vector<std::byte> raw;
  std::array<EndsBlock, cached_blocks> blocks;

  explicit State(const std::filesystem::path& folder) : manifest(read_corpus_manifest(folder)) {
    for (const CorpusShard& shard : manifest.shards) {
      ShardPlace& place = shards.emplace_back();
      place.path = folder / shard.file;
      place.first_token = tokens;
      place.tokens = shard.tokens;
      place.documents = shard.documents;
      tokens += shard.tokens;
      open(shards.size() - 1);
    }
    if (tokens == 0) {
      throw UserError(folder.string(), "the corpus holds no tokens",
                      "make it anew with 'fulmen prepare' from some text");
    }
  }

  OpenShard& open(std::size_t index) {
    ShardPlace& shard = shards[index];
    if (!shard.open) {
      if (open_shards.size() == most_open_shards) close_least_used();
      shard.open = open_shard(shard.path, manifest.shards[index], manifest.dtype);
      open_shards.push_back(index);
    }
    shard.open->last_used = ++uses;
    return *shard.open;
  }

  void close_least_used() {
    const auto least = std::min_element(open_shards.begin(), open_shards.end(), [&](std::size_t a, std::size_t b) {
      return shards[a].open->last_used < shards[b].open->last_used;
    });
    shards[*least].open.reset();
    open_shards.erase(least);
  }

  // The shard that holds this position of the stream.
  std::size_t shard_of(std::int64_t position) const {
    const auto after = std::upper_bound(shards.begin(), shards.end(), position,
                                        [](std::int64_t p, const ShardPlace& s) { return p < s.first_token; });
    return static_cast<std::size_t>(after - shards.begin()) - 1;
  }

  const std::vector<std::uint64_t>& ends_block(std::size_t index, std::int64_t block) {
    EndsBlock& slot = blocks[(index * 31 + static_cast<std::size_t>(block)) % cached_blocks];
    if (slot.block != block || slot.shard != index) {
      slot.block = -1;  // stays so should the read throw
      slot.ends = read_ends(open(index).document_ends, block);
      slot.shard = index;
      slot.block = block;
    }
    return slot.ends;
  }

  const std::vector<std::uint64_t>& sparse_ends(std::size_t index) {
    ShardPlace& shard = shards[index];
    if (shard.sparse_ends.empty()) shard.sparse_ends = index_ends(shard.path, open(index).document_ends, nullptr);
    return shard.sparse_ends;
  }

  // Appends the document starts of one shard within (begin, end) of the stream.
  void append_starts(std::size_t index, std::int64_t begin, std::int64_t end, std::vector<std::int64_t>& starts) {
    const ShardPlace& shard = shards[index];
    if (shard.tokens == 0) return;
    if (shard.first_token > begin && shard.first_token < end) starts.push_back(shard.first_token);
    // Within the shard: the ends in (low, high). Its last end is the next shard's business.
    const auto low = static_cast<std::uint64_t>(std::max<std::int64_t>(begin - shard.first_token, 0));
    const auto high = static_cast<std::uint64_t>(std::min(end - shard.first_token, shard.tokens));
    const std::vector<std::uint64_t>& sparse = sparse_ends(index);
    const auto after = std::upper_bound(sparse.begin(), sparse.end(), low);
    for (std::int64_t block = std::max<std::int64_t>(after - sparse.begin() - 1, 0);
         block * ends_per_block < shard.documents; ++block) {
      const std::vector<std::uint64_t>& ends = ends_block(index, block);
      for (auto e = std::upper_bound(ends.begin(), ends.end(), low); e != ends.end(); ++e) {
        if (*e >= high) return;
        starts.push_back(shard.first_token + static_cast<std::int64_t>(*e));
      }
    }
  }
};

CorpusReader::CorpusReader(const std::filesystem::path& folder) : state_(std::make_unique<State>(folder)) {}
CorpusReader::~CorpusReader() = default;
CorpusReader::CorpusReader(CorpusReader&&) noexcept = default;

const CorpusManifest& CorpusReader::manifest() const { return state_->manifest; }

std::int64_t CorpusReader::tokens() const { return state_->tokens; }

std::int64_t CorpusReader::samples(std::int64_t length) const {
  FULMEN_CHECK(length >= 1, "samples of length {}", length);
  return (state_->tokens - 1) / length;
}

void CorpusReader::read(std::int64_t begin, std::span<std::int32_t> out) const {
  State& state = *state_;
  FULMEN_CHECK(begin >= 0 && begin + static_cast<std::int64_t>(out.size()) <= state.tokens,
               "tokens [{}, {}) of a corpus of {}", begin, begin + static_cast<std::int64_t>(out.size()), state.tokens);
  while (!out.empty()) {
    const std::size_t index = state.shard_of(begin);
    const ShardPlace& shard = state.shards[index];
    const std::int64_t offset = begin - shard.first_token;
    const auto piece = out.first(std::min(out.size(), static_cast<std::size_t>(shard.tokens - offset)));
    read_tokens(shard, state.open(index), state.manifest.vocabulary, offset, piece, state.raw, nullptr);
    begin += static_cast<std::int64_t>(piece.size());
    out = out.subspan(piece.size());
  }
}

std::vector<std::int64_t> CorpusReader::document_starts(std::int64_t begin, std::int64_t end) const {
  State& state = *state_;
  FULMEN_CHECK(begin >= 0 && begin <= end, "document starts in ({}, {})", begin, end);
  std::vector<std::int64_t> starts;
  end = std::min(end, state.tokens);
  if (begin >= end) return starts;
  for (std::size_t index = state.shard_of(begin); index < state.shards.size(); ++index) {
    if (state.shards[index].first_token >= end) break;
    state.append_starts(index, begin, end, starts);
  }
  return starts;
}

namespace {

void compare_checksum(const std::filesystem::path& path, std::string_view of_what, const std::string& found,
                      const std::optional<std::string>& expected, const std::string& remedy) {
  if (!expected || found == *expected) return;
  throw UserError(path.string(),
                  fmt::format("the checksum of {} is {}, but the manifest says {}: it is damaged or another", of_what,
                              found, *expected),
                  remedy);
}

}  // namespace

void verify_corpus(const std::filesystem::path& folder, int part, int parts) {
  FULMEN_CHECK(part >= 0 && part < parts, "part {} of {}", part, parts);
  const CorpusManifest manifest = read_corpus_manifest(folder);
  if (part == 0 && manifest.tokenizer_xxh3 && !manifest.tokenizer_file.empty()) {
    const std::filesystem::path file = folder / manifest.tokenizer_file;
    compare_checksum(file, "the tokeniser's file", hash_file(file), manifest.tokenizer_xxh3,
                     "restore the file that the corpus was made with, or make the corpus anew with 'fulmen prepare'");
  }
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(tokens_at_once));
  std::vector<std::byte> raw;
  for (auto s = static_cast<std::size_t>(part); s < manifest.shards.size(); s += static_cast<std::size_t>(parts)) {
    const CorpusShard& expected = manifest.shards[s];
    ShardPlace shard;
    shard.path = folder / expected.file;
    const std::unique_ptr<OpenShard> open = open_shard(shard.path, expected, manifest.dtype);
    Hasher ends, hasher;
    index_ends(shard.path, open->document_ends, &ends);
    for (std::int64_t begin = 0; begin < expected.tokens; begin += tokens_at_once) {
      const auto count = static_cast<std::size_t>(std::min(tokens_at_once, expected.tokens - begin));
      read_tokens(shard, *open, manifest.vocabulary, begin, std::span(tokens).first(count), raw, &hasher);
    }
    compare_checksum(shard.path, "its tokens", hasher.digest(), expected.xxh3, restore);
    compare_checksum(shard.path, "its document ends", ends.digest(), expected.document_ends_xxh3, restore);
  }
}

}  // namespace fulmen
