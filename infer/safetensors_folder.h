// A model as Hugging Face lays it out: `model.safetensors`, or `model-00001-of-00003.safetensors` and so on with
// `model.safetensors.index.json`, whose weight_map says which tensor lies in which file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "infer/safetensors.h"

namespace fulmen {

inline constexpr const char* safetensors_single_file = "model.safetensors";
inline constexpr const char* safetensors_index_file = "model.safetensors.index.json";

// Whether a file of this name would be read as part of a model in its folder.
bool is_safetensors_model_file(const std::string& name);

// All tensors of a folder under one map of names.
class SafetensorsFolder {
 public:
  // Opens and checks every file. The single file goes before an index; `folder` may be a file itself. Throws UserError:
  // no model, a malformed index, a file or a tensor that the index names and is not there.
  explicit SafetensorsFolder(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  std::vector<std::string> names() const;  // alphabetical
  bool has(const std::string& name) const { return reader_of_.contains(name); }
  const SafetensorsTensor& tensor(const std::string& name) const;  // throws UserError when there is none
  // As SafetensorsReader::read.
  void read(const std::string& name, const std::vector<std::int64_t>& offset, const Tensor& memory) const;

 private:
  const SafetensorsReader& reader(const std::string& name) const;

  std::filesystem::path folder_;
  std::vector<SafetensorsReader> readers_;
  std::map<std::string, std::size_t> reader_of_;  // by tensor
};

// Writes such a folder: one file up to `shard_bytes` of elements, above it files of about that size and the index.
// Tensors go into files in the order given.
class SafetensorsFolderWriter {
 public:
  // Creates the folder. Throws UserError when it holds model files of another name, which would be read for this
  // model's.
  SafetensorsFolderWriter(const std::filesystem::path& folder, const std::vector<SafetensorsTensor>& tensors,
                          const std::map<std::string, std::string>& metadata, std::int64_t shard_bytes);
  // As SafetensorsWriter::write.
  void write(const std::string& name, const std::vector<std::int64_t>& offset, const Tensor& memory);
  // Completes every file, then writes the index.
  void close();

 private:
  std::filesystem::path folder_;
  std::vector<std::string> files_;
  std::vector<SafetensorsWriter> writers_;
  std::map<std::string, std::size_t> writer_of_;  // by tensor
  std::int64_t total_bytes_ = 0;
};

}  // namespace fulmen
