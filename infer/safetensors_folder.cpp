// The index read and written, and tensors dealt out over files.
#include "infer/safetensors_folder.h"

#include <algorithm>
#include <system_error>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/json_document.h"
#include "framework/outside_files.h"
#include "framework/text.h"
#include "infer/safetensors_elements.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr const char* get_anew = "get the model's files anew, all of one version";

std::map<std::string, std::string> read_index(const fs::path& path) {
  const std::string where = path.string();
  const json index = parse_json_object(read_document(path), where);
  if (!index.contains("weight_map") || !index["weight_map"].is_object()) {
    throw UserError(where, "has no object 'weight_map'", get_anew);
  }
  std::map<std::string, std::string> file_of;
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string() || !file_name_problem(file.get<std::string>()).empty()) {
      throw UserError(
          where, fmt::format("its weight_map gives {} for {}, not the name of a file in its folder", file.dump(), name),
          get_anew);
    }
    file_of[name] = file.get<std::string>();
  }
  if (file_of.empty()) throw UserError(where, "its weight_map is empty", get_anew);
  return file_of;
}

[[noreturn]] void refuse_folder(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw UserError(folder.string(), "is not a folder", "give the folder of a Hugging Face model");
  }
  const std::string what = fmt::format("holds neither {} nor {}", safetensors_single_file, safetensors_index_file);
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().filename().string().starts_with("pytorch_model")) {
      throw UserError(
          folder.string(), what + ", but pickled weights (" + entry.path().filename().string() + ")",
          "convert them first, for example with save_pretrained(..., safe_serialization=True) of transformers");
    }
  }
  throw UserError(folder.string(), what, "give the folder of a Hugging Face model with safetensors files");
}

// The files that each tensor goes into, by greedy filling.
std::vector<std::vector<SafetensorsTensor>> deal_out(const std::vector<SafetensorsTensor>& tensors,
                                                     std::int64_t shard_bytes) {
  std::vector<std::vector<SafetensorsTensor>> shards(1);
  std::int64_t filled = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    const std::int64_t bytes = safetensors_bytes(tensor);
    if (filled > 0 && filled + bytes > shard_bytes) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(tensor);
    filled += bytes;
  }
  return shards;
}

std::string shard_name(std::size_t shard, std::size_t shards) {
  if (shards == 1) return safetensors_single_file;
  return fmt::format("model-{:05d}-of-{:05d}.safetensors", shard + 1, shards);
}

// Files of an earlier model that would stay among the new files, and be taken for part of them.
void refuse_strangers(const fs::path& folder, const std::vector<std::string>& files) {
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    const bool replaced = std::find(files.begin(), files.end(), name) != files.end() ||
                          (name == safetensors_index_file && files.size() > 1);
    if (!is_safetensors_model_file(name) || replaced) continue;
    throw UserError(folder.string(), fmt::format("holds {}, a file of another model or of other shards", name),
                    "remove it, or choose an empty folder");
  }
}

}  // namespace

bool is_safetensors_model_file(const std::string& name) {
  return name == safetensors_index_file || (name.starts_with("model") && name.ends_with(".safetensors"));
}

SafetensorsFolder::SafetensorsFolder(const fs::path& folder) : folder_(folder) {
  std::error_code error;
  const bool file = fs::exists(folder, error) && !fs::is_directory(folder, error);
  if (file || fs::exists(folder / safetensors_single_file, error)) {
    readers_.emplace_back(file ? folder : folder / safetensors_single_file);
    for (const std::string& name : readers_[0].names()) reader_of_[name] = 0;
    return;
  }
  const fs::path index = folder / safetensors_index_file;
  if (!fs::exists(index, error)) refuse_folder(folder);
  std::map<std::string, std::size_t> opened;
  for (const auto& [name, file] : read_index(index)) {
    const auto [found, fresh] = opened.emplace(file, readers_.size());
    if (fresh && !fs::exists(folder / file, error)) {
      throw UserError(index.string(), fmt::format("names the file {}, which is not there", file), get_anew);
    }
    if (fresh) readers_.emplace_back(folder / file);
    if (!readers_[found->second].has(name)) {
      throw UserError(index.string(), fmt::format("says that {} lies in {}, but it does not", name, file), get_anew);
    }
    reader_of_[name] = found->second;
  }
}

std::vector<std::string> SafetensorsFolder::names() const {
  std::vector<std::string> names;
  for (const auto& [name, reader] : reader_of_) names.push_back(name);
  return names;
}

const SafetensorsReader& SafetensorsFolder::reader(const std::string& name) const {
  const auto found = reader_of_.find(name);
  if (found != reader_of_.end()) return readers_[found->second];
  const std::string nearest = nearest_name(name, names());
  throw UserError(folder_.string(), "the model has no tensor " + name,
                  nearest.empty() ? "check that it is of this family"
                                  : fmt::format("check that it is of this family; it has {}", nearest));
}

const SafetensorsTensor& SafetensorsFolder::tensor(const std::string& name) const { return reader(name).tensor(name); }

void SafetensorsFolder::read(const std::string& name, const std::vector<std::int64_t>& offset,
                             const Tensor& memory) const {
  reader(name).read(name, offset, memory);
}

SafetensorsFolderWriter::SafetensorsFolderWriter(const fs::path& folder, const std::vector<SafetensorsTensor>& tensors,
                                                 const std::map<std::string, std::string>& metadata,
                                                 std::int64_t shard_bytes)
    : folder_(folder) {
  const auto shards = deal_out(tensors, shard_bytes);
  for (std::size_t i = 0; i < shards.size(); ++i) files_.push_back(shard_name(i, shards.size()));
  ensure_writable_folder(folder, "the place of the exported model");
  refuse_strangers(folder, files_);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    for (const SafetensorsTensor& tensor : shards[i]) {
      FULMEN_CHECK(writer_of_.emplace(tensor.name, i).second, "{} is declared twice", tensor.name);
      total_bytes_ += safetensors_bytes(tensor);
    }
    writers_.emplace_back(folder / files_[i], shards[i], metadata);
  }
}

void SafetensorsFolderWriter::write(const std::string& name, const std::vector<std::int64_t>& offset,
                                    const Tensor& memory) {
  const auto found = writer_of_.find(name);
  FULMEN_CHECK(found != writer_of_.end(), "{} was not declared", name);
  writers_[found->second].write(name, offset, memory);
}

void SafetensorsFolderWriter::close() {
  for (SafetensorsWriter& writer : writers_) writer.close();
  if (files_.size() == 1) return;
  json weight_map = json::object();
  for (const auto& [name, writer] : writer_of_) weight_map[name] = files_[writer];
  const json index{{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", weight_map}};
  write_text_atomically(folder_ / safetensors_index_file, index.dump(2) + "\n");
}

}  // namespace fulmen
