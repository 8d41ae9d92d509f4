// Reading through the virtual datasets. A hole among the pieces reads as NaN (for integers: as zero); what looks like
// one is looked up in the shards themselves, so that a parameter that really is NaN is told from one that is missing.
#include <algorithm>
#include <cmath>
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

template <class T>
bool holds_nan(const Tensor& memory) {
  if (memory.rank() > 0 && !memory.is_contiguous()) {
    for (std::int64_t i = 0; i < memory.size(0); ++i) {
      if (holds_nan<T>(memory.select(0, i))) return true;
    }
    return false;
  }
  const T* values = memory.as<T>();
  bool found = false;
  for (std::int64_t i = 0; i < memory.elements(); ++i) found |= std::isnan(values[i]);
  return found;
}

bool may_have_hole(const Tensor& memory) {
  if (memory.dtype() == DType::fp32) return holds_nan<float>(memory);
  if (memory.dtype() == DType::fp64) return holds_nan<double>(memory);
  return true;
}

// The pieces of a tensor that its shards hold.
std::vector<StoredPiece> pieces_in_shards(const fs::path& folder, const CheckpointManifest& manifest,
                                          const std::string& name) {
  std::vector<StoredPiece> pieces;
  for (const FileRecord& record : manifest.files) {
    if (!is_shard(record.file)) continue;
    const hdf5::File shard = hdf5::File::open(folder / record.file);
    for (std::int64_t ordinal = 0; shard.exists(piece_dataset(name, ordinal)); ++ordinal) {
      const hdf5::Dataset dataset = shard.dataset(piece_dataset(name, ordinal));
      pieces.push_back({name, dataset.dtype(), dataset.read_attribute("global_shape"), dataset.read_attribute("offset"),
                        dataset.shape(), record.file, piece_dataset(name, ordinal)});
    }
  }
  return pieces;
}

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
  fs::path folder;
  CheckpointManifest manifest;
  hdf5::File file;
  std::set<std::string> names;
  mutable std::set<std::string> whole;  // tensors whose pieces have been looked up

  hdf5::Dataset dataset(const std::string& name) const {
    if (names.contains(name)) return file.dataset("/" + name);
    const std::string nearest = nearest_name(name, {names.begin(), names.end()});
    throw UserError(folder.string(), "the checkpoint has no tensor " + name,
                    nearest.empty() ? "check that it is a checkpoint of this model"
                                    : fmt::format("check that it is a checkpoint of this model; it has {}", nearest));
  }

  void require_whole(const std::string& name, const Shape& shape) const {
    if (whole.contains(name)) return;
    const std::vector<StoredPiece> pieces = pieces_in_shards(folder, manifest, name);
    std::string problem = coverage_problem(pieces);
    if (problem.empty() && pieces[0].global_shape != shape) problem = "the shards and the index disagree on its shape";
    if (!problem.empty()) {
      throw UserError(folder.string(), fmt::format("the tensor {} is incomplete: {}", name, problem),
                      "restore the checkpoint's files, or take an older checkpoint");
    }
    whole.insert(name);
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

std::optional<fs::path> CheckpointReader::tokenizer_file() const {
  for (const FileRecord& record : state_->manifest.files) {
    if (record.file.starts_with("tokenizer") || record.file.ends_with(".model")) return state_->folder / record.file;
  }
  return std::nullopt;
}

bool CheckpointReader::has(const std::string& name) const { return state_->names.contains(name); }

std::vector<std::string> CheckpointReader::names() const { return {state_->names.begin(), state_->names.end()}; }

Shape CheckpointReader::shape(const std::string& name) const { return state_->dataset(name).shape(); }

DType CheckpointReader::dtype(const std::string& name) const { return state_->dataset(name).dtype(); }

void CheckpointReader::read(const TensorPiece& piece) const {
  const hdf5::Dataset dataset = state_->dataset(piece.name);
  const Shape& stored = dataset.shape();
  if (!piece.global_shape.empty() && piece.global_shape != stored) {
    throw UserError(state_->folder.string(),
                    fmt::format("the tensor {} has the shape {}, but {} is needed", piece.name, to_string(stored),
                                to_string(piece.global_shape)),
                    "check that it is a checkpoint of this model");
  }
  if (piece.memory.elements() == 0) return;
  dataset.read(piece.offset, piece.memory);
  if (may_have_hole(piece.memory)) state_->require_whole(piece.name, stored);
}

}  // namespace fulmen
