// Reading piece by piece: the virtual datasets of the index say where each piece lies, and are themselves never read.
// So no file is opened that the manifest does not list, and a hole among the pieces is not taken for NaN.
#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/piece_map.h"
#include "framework/error.h"
#include "framework/hash.h"
#include "framework/hdf5.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

// A shard that the manifest does not know would be read through the index, without a checksum.
void check_shards_are_listed(const fs::path& folder, const CheckpointManifest& manifest) {
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    const bool listed = std::ranges::find(manifest.files, name, &FileRecord::file) != manifest.files.end();
    if (is_shard(name) && !listed)
      throw UserError(folder.string(),
                      fmt::format("holds {}, which its manifest does not list: the manifest is damaged", name),
                      "restore it, or take an older checkpoint");
  }
  if (error)
    throw UserError(folder.string(), "cannot be listed: " + error.message(), "check its permissions and the disk");
}

}  // namespace

struct CheckpointReader::State {
  static constexpr std::size_t most_open_shards = 64;

  fs::path folder;
  CheckpointManifest manifest;
  hdf5::File file;
  std::set<std::string> names;
  // For the tensor that was read last: callers read the pieces of a tensor one after the other.
  mutable std::string mapped;
  mutable hdf5::VirtualMap whole;
  mutable std::map<std::string, hdf5::File> shards;  // that are open

  hdf5::VirtualMap map(const std::string& name) const {
    if (names.contains(name)) return file.virtual_map("/" + name);
    const std::string nearest = nearest_name(name, {names.begin(), names.end()});
    throw UserError(folder.string(), "the checkpoint has no tensor " + name,
                    nearest.empty() ? "check that it is a checkpoint of this model"
                                    : fmt::format("check that it is a checkpoint of this model; it has {}", nearest));
  }

  [[noreturn]] void refuse(const std::string& name, const std::string& problem) const {
    throw UserError(folder.string(), fmt::format("the tensor {} is incomplete: {}", name, problem),
                    "restore the checkpoint's files, or take an older checkpoint");
  }

  // The map of a tensor whose pieces lie in listed shards and make it whole.
  const hdf5::VirtualMap& whole_map(const std::string& name) const {
    if (mapped == name) return whole;
    hdf5::VirtualMap found = map(name);
    std::vector<StoredPiece> pieces;
    for (const hdf5::VirtualSource& source : found.sources) {
      if (!is_shard(source.file) ||
          std::ranges::find(manifest.files, source.file, &FileRecord::file) == manifest.files.end()) {
        refuse(name, fmt::format("a piece of it lies in {}, which is no shard that the manifest lists", source.file));
      }
      pieces.push_back({name, found.dtype, found.shape, source.offset, source.shape, source.file, source.dataset});
    }
    if (const std::string problem = coverage_problem(pieces); !problem.empty()) refuse(name, problem);
    whole = std::move(found);
    mapped = name;
    return whole;
  }

  const hdf5::File& shard(const std::string& name) const {
    const auto found = shards.find(name);
    if (found != shards.end()) return found->second;
    if (shards.size() == most_open_shards) shards.clear();
    return shards.emplace(name, hdf5::File::open(folder / name)).first->second;
  }

  hdf5::Dataset piece(const std::string& name, const hdf5::VirtualMap& map, const hdf5::VirtualSource& source) const {
    const hdf5::File& file = shard(source.file);
    if (!file.exists(source.dataset)) refuse(name, fmt::format("{} does not hold {}", source.file, source.dataset));
    hdf5::Dataset dataset = file.dataset(source.dataset);
    if (dataset.shape() != source.shape || dataset.dtype() != map.dtype) {
      refuse(name, fmt::format("{} holds {} as {} {}, the index says {} {}", source.file, source.dataset,
                               name_of(dataset.dtype()), to_string(dataset.shape()), name_of(map.dtype),
                               to_string(source.shape)));
    }
    return dataset;
  }

  // Reads what a source has of the hyperslab at `offset` of `memory`'s shape.
  void read_part(const std::string& name, const hdf5::VirtualMap& map, const hdf5::VirtualSource& source,
                 const std::vector<std::int64_t>& offset, Tensor memory) const {
    std::vector<std::int64_t> in_source(offset.size());
    for (std::size_t d = 0; d < offset.size(); ++d) {
      const int dimension = static_cast<int>(d);
      const std::int64_t begin = std::max(offset[d], source.offset[d]);
      const std::int64_t end = std::min(offset[d] + memory.size(dimension), source.offset[d] + source.shape[d]);
      if (begin >= end) return;
      in_source[d] = begin - source.offset[d];
      memory = memory.slice(dimension, begin - offset[d], end - offset[d]);
    }
    piece(name, map, source).read(in_source, memory);
  }
};

CheckpointReader::CheckpointReader(const fs::path& folder) : state_(std::make_unique<State>()) {
  state_->folder = folder;
  state_->manifest = read_manifest(folder);
  check_file_sizes(folder, state_->manifest);
  check_shards_are_listed(folder, state_->manifest);
  state_->file = hdf5::File::open(folder / parameters_file);
  for (const std::string& name : state_->file.dataset_names()) state_->names.insert(name.substr(1));
}

CheckpointReader::~CheckpointReader() = default;
CheckpointReader::CheckpointReader(CheckpointReader&&) noexcept = default;

void CheckpointReader::verify(Communicator& communicator) const {
  run_agreed(communicator, [&] {
    const std::vector<FileRecord>& files = state_->manifest.files;
    for (std::size_t i = static_cast<std::size_t>(communicator.rank()); i < files.size();
         i += static_cast<std::size_t>(communicator.size())) {
      const fs::path path = state_->folder / files[i].file;
      const std::string found = hash_file(path);
      if (found == files[i].xxh3) continue;
      throw UserError(path.string(),
                      fmt::format("this file of the checkpoint is damaged: its checksum is {}, the manifest says {}",
                                  found, files[i].xxh3),
                      "restore it, or take an older checkpoint");
    }
  });
}

const CheckpointDescription& CheckpointReader::description() const { return state_->manifest.description; }

const fs::path& CheckpointReader::folder() const { return state_->folder; }

std::vector<std::string> CheckpointReader::unprotected() const {
  if (state_->manifest.sealed) return {};
  return {"the manifest: step, tokens, samples, model and configuration"};
}

std::optional<fs::path> CheckpointReader::tokenizer_file() const {
  for (const FileRecord& record : state_->manifest.files) {
    if (record.file.starts_with("tokenizer") || record.file.ends_with(".model")) return state_->folder / record.file;
  }
  return std::nullopt;
}

bool CheckpointReader::has(const std::string& name) const { return state_->names.contains(name); }

std::vector<std::string> CheckpointReader::names() const { return {state_->names.begin(), state_->names.end()}; }

Shape CheckpointReader::shape(const std::string& name) const { return state_->map(name).shape; }

DType CheckpointReader::dtype(const std::string& name) const { return state_->map(name).dtype; }

void CheckpointReader::read(const TensorPiece& piece) const {
  const hdf5::VirtualMap& whole = state_->whole_map(piece.name);
  const auto refuse = [&](const Shape& needed, const std::string& where) {
    throw UserError(state_->folder.string(),
                    fmt::format("the tensor {} has the shape {}, but {}{} is needed", piece.name,
                                to_string(whole.shape), to_string(needed), where),
                    "check that it is a checkpoint of this model");
  };
  if (!piece.global_shape.empty() && piece.global_shape != whole.shape) refuse(piece.global_shape, "");
  if (piece.memory.elements() == 0) return;
  // A single element may come as any rank.
  const bool one = piece.memory.elements() == 1;
  const Tensor memory = one ? piece.memory.reshape(Shape(whole.shape.size(), 1)) : piece.memory;
  bool inside = memory.shape().size() == whole.shape.size() && piece.offset.size() == whole.shape.size();
  for (std::size_t d = 0; d < whole.shape.size() && inside; ++d) {
    inside = piece.offset[d] >= 0 && memory.size(static_cast<int>(d)) <= whole.shape[d] - piece.offset[d];
  }
  if (!inside) refuse(memory.shape(), fmt::format(" at offset {}", to_string(piece.offset)));
  for (const hdf5::VirtualSource& source : whole.sources)
    state_->read_part(piece.name, whole, source, piece.offset, memory);
}

}  // namespace fulmen
