// `manifest.yaml`: what a checkpoint says about itself. Written last, so a folder without a valid one does not exist.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace fulmen {

inline constexpr int checkpoint_version = 2;
inline constexpr const char* manifest_file = "manifest.yaml";
inline constexpr const char* parameters_file = "parameters.h5";  // the virtual datasets
inline constexpr const char* partial_suffix = ".partial";        // of a folder that is being written
inline constexpr const char* replaced_suffix = ".replaced";      // of a checkpoint that makes way for its successor

struct FileRecord {
  std::string file;  // relative to the checkpoint
  std::uint64_t bytes = 0;
  std::string xxh3;  // of the whole file
};

struct CheckpointManifest {
  CheckpointDescription description;
  std::vector<FileRecord> files;
  bool sealed = false;  // read with a checksum of itself: version 1 had none
};

// Size and checksum of a file in `folder`. Throws UserError when it cannot be read.
FileRecord record_file(const std::filesystem::path& folder, const std::string& file);

// Flushes to disk.
void write_manifest(const std::filesystem::path& folder, const CheckpointManifest& manifest);
// Throws UserError: no folder, no manifest, malformed, another format, a newer version, not as it was written. Also
// where a key is missing or out of range, or the folder has the name of another step.
CheckpointManifest read_manifest(const std::filesystem::path& folder);
// Throws UserError naming the file that is missing or has not the size recorded.
void check_file_sizes(const std::filesystem::path& folder, const CheckpointManifest& manifest);

// The step that a folder's name tells: 500 of "step-00000500", also while it steps aside (".replaced").
std::optional<std::int64_t> step_of_name(const std::string& name);
// Whether a file of this name may be part of a checkpoint.
bool is_checkpoint_file(const std::string& name);
// Whether `file` holds pieces: a shard, as opposed to the virtual datasets or an extra file.
bool is_shard(const std::string& file);

}  // namespace fulmen
