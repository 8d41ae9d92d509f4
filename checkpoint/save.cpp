// Saving: pieces into a temporary folder, agreement of all ranks, then the index, the manifest and the rename.
#include <fcntl.h>
#include <stdio.h>  // renameat2

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <system_error>

#include <fmt/format.h>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/manifest.h"
#include "checkpoint/piece_map.h"
#include "framework/error.h"
#include "framework/files.h"
#include "framework/hdf5.h"
#include "framework/outside_files.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

std::string reason(int code) { return std::generic_category().message(code); }

[[noreturn]] void throw_unwritable(const fs::path& path, const std::string& why) {
  throw UserError(path.string(), "the checkpoint cannot be written: " + why,
                  "check the folder's permissions and free space, or choose another place");
}

// A disk that fills up may say so only here.
void flush(const fs::path& path) {
  try {
    flush_to_disk(path);
  } catch (const InternalError& error) {
    throw_unwritable(path, error.what());
  }
}

fs::path with_suffix(fs::path path, const char* suffix) { return path += suffix; }

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);  // of a symbolic link: the link alone
  if (error) throw_unwritable(path, "what an earlier attempt left cannot be removed: " + error.message());
}

// An absolute folder without a trailing separator, so that it has a parent and a name.
fs::path folder_to_write(const fs::path& root, std::int64_t step, bool exact) {
  fs::path folder = fs::absolute(root).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();
  return exact ? folder : folder / fmt::format("step-{:08d}", step);
}

std::vector<StoredPiece> describe_pieces(const std::vector<TensorPiece>& pieces, const std::string& shard) {
  std::vector<StoredPiece> described;
  std::map<std::string, std::int64_t> ordinals;
  for (const TensorPiece& piece : pieces) {
    const bool proper = !piece.name.empty() && piece.name.front() != '/' && piece.name.back() != '/' &&
                        piece.name.find_first_of("@\t\n") == std::string::npos;
    FULMEN_CHECK(proper, "'{}' cannot name a tensor in a checkpoint", piece.name);
    FULMEN_CHECK(!piece.global_shape.empty(), "{}: a tensor in a checkpoint has at least one dimension", piece.name);
    FULMEN_CHECK(piece.memory.device() == Device::cpu() || piece.to_host,
                 "{}: a piece to be saved lies in host memory, or says how it gets there", piece.name);
    if (piece.memory.elements() == 0) continue;
    described.push_back({piece.name, piece.memory.dtype(), piece.global_shape, piece.offset, piece.memory.shape(),
                         shard, piece_dataset(piece.name, ordinals[piece.name]++)});
  }
  return described;
}

PieceMap map_pieces(const std::vector<std::string>& texts) {
  PieceMap map;
  for (const std::string& text : texts) {
    for (StoredPiece& piece : parse_pieces(text)) map[piece.name].push_back(std::move(piece));
  }
  return map;
}

void check_coverage(const PieceMap& map) {
  for (const auto& [name, pieces] : map) {
    const std::string problem = coverage_problem(pieces);
    FULMEN_CHECK(problem.empty(), "the pieces of {} do not make it whole: {}", name, problem);
  }
}

std::uint64_t bytes_of(const PieceMap& map) {
  std::uint64_t bytes = 0;
  for (const auto& [name, pieces] : map) {
    bytes += static_cast<std::uint64_t>(elements_of(pieces[0].global_shape)) * size_of(pieces[0].dtype);
  }
  return bytes;
}

// Refuses before anything is written what cannot end well, and makes the empty temporary folder.
void prepare(const fs::path& folder, const fs::path& partial, std::uint64_t bytes, std::int64_t step,
             const SaveOptions& options) {
  if (const auto named = step_of_name(folder.filename()); named.value_or(step) != step) {
    throw UserError(folder.string(),
                    fmt::format("is named after step {}, but the checkpoint is of step {}", *named, step),
                    "choose another name");
  }
  ensure_writable_folder(folder.parent_path(), "the place of checkpoints");
  std::error_code error;
  const fs::file_status there = fs::symlink_status(folder, error);
  if (fs::exists(there) && !fs::is_directory(there) && !fs::is_symlink(there)) {
    throw UserError(folder.string(), "a file stands where the checkpoint should go",
                    "move it away, or choose another place");
  }
  if (options.exact_folder && fs::is_directory(folder, error) && !fs::is_empty(folder, error) &&
      !fs::exists(folder / manifest_file, error)) {
    throw UserError(folder.string(), "the folder holds other things than a checkpoint",
                    "choose an empty or a new folder");
  }
  remove_tree(partial);
  const std::uint64_t available = free_bytes(folder.parent_path());
  if (available < bytes) {
    throw_unwritable(
        folder, fmt::format("it takes {}, but only {} are free on this disk", human_bytes(static_cast<double>(bytes)),
                            human_bytes(static_cast<double>(available))));
  }
  if (!fs::create_directory(partial, error)) throw_unwritable(partial, error.message());
}

FileRecord write_shard(const fs::path& partial, const std::string& shard, const std::vector<TensorPiece>& pieces,
                       const std::vector<StoredPiece>& described) {
  std::error_code error;
  if (!fs::is_directory(partial, error)) {
    throw UserError(partial.string(),
                    "the ranks do not see one folder: a rank has made it, and this rank cannot find it",
                    "put checkpoints on a file system that all nodes share");
  }
  hdf5::File file = hdf5::File::create(partial / shard);
  auto next = described.begin();
  std::vector<std::byte> staging;  // one piece at a time: host memory need not hold a model
  for (const TensorPiece& piece : pieces) {
    if (piece.memory.elements() == 0) continue;
    Tensor memory = piece.memory;
    if (piece.to_host) {
      staging.resize(std::max(staging.size(), memory.bytes()));
      piece.to_host(staging.data());
      memory = Tensor(staging.data(), memory.dtype(), memory.shape());
    }
    hdf5::Dataset dataset = file.create_dataset(next->dataset, next->dtype, next->shape);
    dataset.write(std::vector<std::int64_t>(next->shape.size(), 0), memory);
    dataset.write_attribute("global_shape", next->global_shape);
    dataset.write_attribute("offset", next->offset);
    dataset.close();
    ++next;
  }
  file.close();
  flush(partial / shard);
  return record_file(partial, shard);
}

void write_index(const fs::path& partial, const PieceMap& map) {
  hdf5::File file = hdf5::File::create(partial / parameters_file);
  for (const auto& [name, pieces] : map) {
    std::vector<hdf5::VirtualSource> sources;
    for (const StoredPiece& piece : pieces) sources.push_back({piece.file, piece.dataset, piece.shape, piece.offset});
    file.create_virtual("/" + name, pieces[0].dtype, pieces[0].global_shape, sources);
  }
  file.close();
  flush(partial / parameters_file);
}

FileRecord copy_extra(const fs::path& partial, const fs::path& source) {
  require_regular_file(source);
  const std::string name = source.filename().string();
  std::error_code error;
  FULMEN_CHECK(!fs::exists(partial / name, error) && name != manifest_file,
               "a second file of the name {} in a checkpoint", name);
  if (!fs::copy_file(source, partial / name, error)) {
    throw UserError(source.string(), "cannot be copied into the checkpoint: " + error.message(), "check both places");
  }
  flush(partial / name);
  return record_file(partial, name);
}

std::string to_text(const FileRecord& record) {
  return fmt::format("{}\t{}\t{}", record.file, record.bytes, record.xxh3);
}

std::vector<FileRecord> parse_records(const std::vector<std::string>& texts) {
  std::vector<FileRecord> records;
  for (const std::string& text : texts) {
    if (text.empty()) continue;
    const std::vector<std::string> fields = split(text, '\t');
    FULMEN_CHECK(fields.size() == 3, "a file described as '{}'", text);
    records.push_back({fields[0], std::stoull(fields[1]), fields[2]});
  }
  return records;
}

void rename_or_throw(const fs::path& from, const fs::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) throw_unwritable(to, "it cannot be renamed: " + reason(errno));
}

// Puts the finished folder in its place. A folder that stands there is exchanged for it in a single step where the file
// system can. Elsewhere it steps aside under a name that readers know. So at every moment either of the two is found.
void put_in_place(const fs::path& partial, const fs::path& folder) {
  if (::rename(partial.c_str(), folder.c_str()) == 0) return;
  if (errno != ENOTEMPTY && errno != EEXIST && errno != ENOTDIR) throw_unwritable(folder, reason(errno));
  if (::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, folder.c_str(), RENAME_EXCHANGE) == 0) {
    flush(folder.parent_path());
    remove_tree(partial);
    return;
  }
  const fs::path aside = with_suffix(folder, replaced_suffix);
  remove_tree(aside);
  rename_or_throw(folder, aside);
  rename_or_throw(partial, folder);
  flush(folder.parent_path());
  remove_tree(aside);
}

// Rank 0's part, when every shard is on disk.
void complete(const fs::path& partial, const fs::path& folder, const CheckpointDescription& description,
              const PieceMap& map, std::vector<FileRecord> files, const SaveOptions& options) {
  write_index(partial, map);
  files.push_back(record_file(partial, parameters_file));
  for (const fs::path& extra : options.extra_files) files.push_back(copy_extra(partial, extra));
  const CheckpointManifest manifest{description, std::move(files)};
  check_file_sizes(partial, manifest);
  write_manifest(partial, manifest);
  put_in_place(partial, folder);
  flush(folder.parent_path());
}

// A full disk shows itself as an HDF5 error, a system error or a short write. All become the user's error, with the
// disk's state. Defects stay defects.
template <class Work>
void writing(const fs::path& place, Work work) {
  try {
    work();
  } catch (const UserError& error) {
    throw UserError({}, fmt::format("{}\n  ({} are free at {})", error.what(),
                                    human_bytes(static_cast<double>(free_bytes(place))), place.string()));
  } catch (const std::system_error& error) {
    throw_unwritable(place, error.what());
  }
}

}  // namespace

fs::path save_checkpoint(const fs::path& root, const CheckpointDescription& description,
                         const std::vector<TensorPiece>& pieces, Communicator& communicator,
                         const SaveOptions& options) {
  const bool first = communicator.rank() == 0;
  const std::string shard = fmt::format("shard-{:05d}.h5", communicator.rank());
  fs::path folder =
      communicator.broadcast_text(folder_to_write(root, description.step, options.exact_folder).string(), 0);
  const fs::path partial = with_suffix(folder, partial_suffix);

  std::vector<StoredPiece> described;
  run_agreed(communicator, [&] { described = describe_pieces(pieces, shard); });
  const std::vector<std::string> texts = gather_texts(to_text(described), communicator);
  PieceMap map;
  run_agreed(communicator, [&] {
    if (!first) return;
    map = map_pieces(texts);
    check_coverage(map);
    prepare(folder, partial, bytes_of(map), description.step, options);
  });

  try {
    std::string record;
    run_agreed(communicator, [&] {
      if (described.empty()) return;
      writing(folder.parent_path(), [&] { record = to_text(write_shard(partial, shard, pieces, described)); });
    });
    const std::vector<std::string> records = gather_texts(record, communicator);
    run_agreed(communicator, [&] {
      if (!first) return;
      writing(folder.parent_path(),
              [&] { complete(partial, folder, description, map, parse_records(records), options); });
    });
  } catch (...) {
    // All ranks have agreed on the failure, so none writes any more. The leftovers are no checkpoint in any case.
    std::error_code ignored;
    if (first) fs::remove_all(partial, ignored);
    throw;
  }
  return folder;
}

}  // namespace fulmen
