// The manifest as YAML, written with care and read with suspicion.
#include "checkpoint/manifest.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <system_error>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/hash.h"
#include "framework/outside_files.h"
#include "framework/outside_numbers.h"
#include "framework/sealed_text.h"
#include "framework/text.h"
#include "framework/yaml.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr const char* format_name = "fulmen-checkpoint";
constexpr const char* take_another = "restore it, or take an older checkpoint";

[[noreturn]] void refuse(const fs::path& path, const std::string& what, const std::string& remedy = take_another) {
  throw UserError(path.string(), what, remedy);
}

YAML::Node member(const YAML::Node& map, const char* key, const fs::path& path) {
  const YAML::Node node = map[key];
  if (!node) refuse(path, fmt::format("has no key '{}': the manifest is damaged", key));
  return node;
}

template <class T>
T scalar(const YAML::Node& map, const char* key, const fs::path& path) {
  const YAML::Node node = member(map, key, path);
  try {
    return node.as<T>();
  } catch (const YAML::Exception&) {
    refuse(path, fmt::format("its key '{}' has no proper value: the manifest is damaged", key));
  }
}

std::int64_t count(const YAML::Node& map, const char* key, const fs::path& path) {
  const auto value = scalar<std::int64_t>(map, key, path);
  if (value < 0) refuse(path, fmt::format("its key '{}' is negative: the manifest is damaged", key));
  if (value > most_counted) {
    refuse(path, fmt::format("its key '{}' is {}, above {}: the manifest is damaged", key, value, most_counted));
  }
  return value;
}

YAML::Node load(const std::string& text, const fs::path& path) {
  const YAML::Node root = load_document(text, path.string(), take_another);
  if (!root.IsMap()) refuse(path, "is not a map: the manifest is damaged");
  return root;
}

// Whether it carries its checksum, which from version 2 on it must.
bool check_format(const YAML::Node& root, const std::string& text, const fs::path& path) {
  const auto format = scalar<std::string>(root, "format", path);
  if (format != format_name) {
    refuse(path, fmt::format("has the format '{}', not '{}'", format, format_name), "give the folder of a checkpoint");
  }
  const auto version = count(root, "version", path);
  if (version > checkpoint_version) {
    refuse(path, fmt::format("is of version {}; this program reads up to version {}", version, checkpoint_version),
           "use the Fulmen that wrote it, or a newer version");
  }
  if (version < 1) refuse(path, fmt::format("has the unknown version {}: the manifest is damaged", version));
  const bool sealed = check_seal(text, path.string(), take_another);
  if (!sealed && version > 1) refuse(path, "does not end with its checksum: the manifest is damaged");
  return sealed;
}

std::vector<FileRecord> parse_files(const YAML::Node& node, const fs::path& path) {
  if (!node.IsSequence()) refuse(path, "its key 'files' is not a list: the manifest is damaged");
  std::vector<FileRecord> files;
  std::set<std::string> seen;
  for (const YAML::Node& entry : node) {
    if (!entry.IsMap()) refuse(path, "its key 'files' holds no maps: the manifest is damaged");
    FileRecord record{scalar<std::string>(entry, "file", path), static_cast<std::uint64_t>(count(entry, "bytes", path)),
                      scalar<std::string>(entry, "xxh3", path)};
    const std::string problem = file_name_problem(record.file);
    if (!problem.empty()) refuse(path, fmt::format("lists the file '{}', which {}", record.file, problem));
    if (!seen.insert(record.file).second) refuse(path, fmt::format("lists the file '{}' twice", record.file));
    files.push_back(std::move(record));
  }
  if (!seen.contains(parameters_file)) refuse(path, fmt::format("does not list {}", parameters_file));
  return files;
}

// A scalar or a list of them. Lists in quotes, as earlier programs wrote them, are scalars.
std::string model_value(const YAML::Node& node, const fs::path& path) {
  if (node.IsScalar()) return node.Scalar();
  const bool list = node.IsSequence() &&
                    std::all_of(node.begin(), node.end(), [](const YAML::Node& part) { return part.IsScalar(); });
  if (!list) refuse(path, "its key 'model' holds more than scalars and lists of them");
  std::vector<std::string> parts;
  for (const YAML::Node& part : node) parts.push_back(part.Scalar());
  return fmt::format("[{}]", join(parts, ", "));
}

std::map<std::string, std::string> parse_model(const YAML::Node& node, const fs::path& path) {
  if (!node.IsMap()) refuse(path, "its key 'model' is not a map: the manifest is damaged");
  std::map<std::string, std::string> model;
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) refuse(path, "its key 'model' has a key that is no word");
    model[entry.first.Scalar()] = model_value(entry.second, path);
  }
  return model;
}

TokenizerRecord parse_tokenizer(const YAML::Node& node, const fs::path& path) {
  if (!node.IsMap()) refuse(path, "its key 'tokenizer' is not a map: the manifest is damaged");
  TokenizerRecord tokenizer{scalar<std::string>(node, "kind", path)};
  if (tokenizer.kind != "sentencepiece" && tokenizer.kind != "bytes" && tokenizer.kind != "none")
    refuse(path, fmt::format("has a tokeniser of the unknown kind '{}'", tokenizer.kind),
           "use the Fulmen that wrote it, or a newer version");
  if (node["end_of_document"]) tokenizer.end_of_document = count(node, "end_of_document", path);
  return tokenizer;
}

// The text goes in as it is, a level deeper, so that what a person reads is what the run echoed.
std::string indented(std::string text) {
  while (text.ends_with('\n')) text.pop_back();
  std::string result;
  for (const std::string& line : split(text, '\n')) result += (line.empty() ? line : "  " + line) + "\n";
  return result;
}

std::string emit_head(const CheckpointDescription& description) {
  YAML::Emitter out;
  out << YAML::BeginMap;
  out << YAML::Key << "format" << YAML::Value << format_name;
  out << YAML::Key << "version" << YAML::Value << checkpoint_version;
  out << YAML::Key << "step" << YAML::Value << description.step;
  out << YAML::Key << "tokens" << YAML::Value << description.tokens;
  out << YAML::Key << "samples" << YAML::Value << description.samples;
  if (!description.corpus.empty())
    out << YAML::Key << "corpus" << YAML::Value << YAML::DoubleQuoted << description.corpus;
  if (const TokenizerRecord& tokenizer = description.tokenizer; !tokenizer.kind.empty()) {
    out << YAML::Key << "tokenizer" << YAML::Value << YAML::Flow << YAML::BeginMap;
    out << YAML::Key << "kind" << YAML::Value << tokenizer.kind;
    if (tokenizer.end_of_document) out << YAML::Key << "end_of_document" << YAML::Value << *tokenizer.end_of_document;
    out << YAML::EndMap;
  }
  out << YAML::Key << "model" << YAML::Value << YAML::BeginMap;
  for (const auto& [key, value] : description.model) {
    out << YAML::Key << key << YAML::Value;
    // Lists as lists: so the map is a section `model` of a configuration.
    if (value.starts_with('['))
      out << YAML::Load(value);
    else
      out << value;
  }
  out << YAML::EndMap << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

std::string emit_configuration(const std::string& configuration) {
  const YAML::Node node = YAML::Load(configuration);
  if (node.IsNull()) return "configuration: {}\n";
  FULMEN_CHECK(node.IsMap(), "a configuration that is not a map");
  return "configuration:\n" + indented(configuration);
}

std::string emit_files(const std::vector<FileRecord>& files) {
  YAML::Emitter out;
  out << YAML::BeginMap << YAML::Key << "files" << YAML::Value << YAML::BeginSeq;
  for (const FileRecord& record : files) {
    out << YAML::Flow << YAML::BeginMap << YAML::Key << "file" << YAML::Value << record.file << YAML::Key << "bytes"
        << YAML::Value << record.bytes << YAML::Key << "xxh3" << YAML::Value << YAML::DoubleQuoted << record.xxh3
        << YAML::EndMap;
  }
  out << YAML::EndSeq << YAML::EndMap;
  return std::string(out.c_str()) + "\n";
}

}  // namespace

FileRecord record_file(const fs::path& folder, const std::string& file) {
  std::error_code error;
  const std::uint64_t bytes = fs::file_size(folder / file, error);
  if (error) throw UserError((folder / file).string(), "cannot be read: " + error.message(), "check the disk");
  return {file, bytes, hash_file(folder / file)};
}

void write_manifest(const fs::path& folder, const CheckpointManifest& manifest) {
  write_text_atomically(folder / manifest_file,
                        sealed(emit_head(manifest.description) +
                               emit_configuration(manifest.description.configuration) + emit_files(manifest.files)));
}

CheckpointManifest read_manifest(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    refuse(folder, fs::exists(folder, error) ? "is not a folder" : "there is no such folder",
           "give the folder of a checkpoint, such as step-00000500");
  }
  const fs::path path = folder / manifest_file;
  if (!fs::exists(path, error)) {
    refuse(folder, fmt::format("has no {}, so it is not a complete checkpoint", manifest_file),
           "an interrupted save leaves such a folder; take an older checkpoint");
  }
  const std::string text = read_document(path);
  const YAML::Node root = load(text, path);
  CheckpointManifest manifest;
  manifest.sealed = check_format(root, text, path);
  CheckpointDescription& description = manifest.description;
  description.step = count(root, "step", path);
  const std::optional<std::int64_t> named =
      step_of_name(fs::absolute(folder / ".").lexically_normal().parent_path().filename());
  if (named.value_or(description.step) != description.step) {
    refuse(folder, fmt::format("is named after step {}, but its manifest says step {}", *named, description.step),
           fmt::format("give it the name step-{:08d} again, or restore it", description.step));
  }
  description.tokens = count(root, "tokens", path);
  description.samples = count(root, "samples", path);
  if (root["corpus"]) description.corpus = scalar<std::string>(root, "corpus", path);
  if (root["tokenizer"]) description.tokenizer = parse_tokenizer(root["tokenizer"], path);
  description.model = parse_model(member(root, "model", path), path);
  const YAML::Node configuration = member(root, "configuration", path);
  if (!configuration.IsMap()) refuse(path, "its key 'configuration' is not a map: the manifest is damaged");
  if (configuration.size() > 0) description.configuration = YAML::Dump(configuration) + "\n";
  manifest.files = parse_files(member(root, "files", path), path);
  return manifest;
}

void check_file_sizes(const fs::path& folder, const CheckpointManifest& manifest) {
  for (const FileRecord& record : manifest.files) {
    const fs::path path = folder / record.file;
    std::error_code error;
    const std::uint64_t bytes = fs::file_size(path, error);
    if (error) refuse(path, "this file of the checkpoint cannot be read: " + error.message());
    if (bytes == record.bytes) continue;
    refuse(path, fmt::format("has {} bytes, but the manifest says {}: it {}",
                             with_thousands(static_cast<std::int64_t>(bytes)),
                             with_thousands(static_cast<std::int64_t>(record.bytes)),
                             bytes < record.bytes ? "was cut short" : "is another file"));
  }
}

std::optional<std::int64_t> step_of_name(const std::string& name) {
  constexpr std::string_view prefix = "step-";
  if (!name.starts_with(prefix)) return std::nullopt;
  std::string_view digits = std::string_view(name).substr(prefix.size());
  if (digits.ends_with(replaced_suffix)) digits.remove_suffix(std::string_view(replaced_suffix).size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  const bool whole = error == std::errc{} && end == digits.data() + digits.size() && step >= 0;
  return whole ? std::optional(step) : std::nullopt;
}

bool is_checkpoint_file(const std::string& name) {
  return name == manifest_file || name == parameters_file || is_shard(name) || name == "tokenizer.model";
}

bool is_shard(const std::string& file) { return file.starts_with("shard-") && file.ends_with(".h5"); }

}  // namespace fulmen
