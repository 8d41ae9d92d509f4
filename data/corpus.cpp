// The manifest of a corpus: YAML both ways, every value checked before anything relies on it.
#include "data/corpus.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/hash.h"
#include "framework/log.h"
#include "framework/outside_files.h"
#include "framework/outside_numbers.h"
#include "framework/sealed_text.h"
#include "framework/text.h"
#include "framework/yaml.h"

namespace fulmen {

namespace {

constexpr std::string_view format_name = "fulmen-corpus";
constexpr std::int64_t format_version = 2;
constexpr const char* manifest_name = "manifest.yaml";
constexpr const char* remedy = "make the corpus with 'fulmen prepare', or correct its manifest (docs/formats.md)";

constexpr std::array<std::pair<std::string_view, TokenizerKind>, 3> tokenizer_names{
    {{"sentencepiece", TokenizerKind::sentencepiece}, {"bytes", TokenizerKind::bytes}, {"none", TokenizerKind::none}}};

// A mapping of the manifest together with where it stands, for messages.
class Section {
 public:
  Section(const YAML::Node& node, std::string file, std::string prefix, const std::vector<std::string>& known)
      : node_(node), file_(std::move(file)), prefix_(std::move(prefix)) {
    if (!node_.IsMap()) fail(fmt::format("expects keys with values, got {}", shown(node_)));
    for_each_entry(node_, file_,
                   [&](const std::string& key, const YAML::Node&, const YAML::Node&) { report_unknown(key, known); });
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw UserError(at(file_, node_.Mark()), prefix_ + what, remedy);
  }
  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw UserError(at(file_, node_[key].Mark()), fmt::format("{}'{}' {}", prefix_, key, what), remedy);
  }

  bool is_null(const std::string& key) const {
    const YAML::Node value = node_[key];
    return !value.IsDefined() || value.IsNull();
  }

  YAML::Node required(const std::string& key) const {
    const YAML::Node value = node_[key];
    if (!value.IsDefined()) fail(fmt::format("the key '{}' is missing", key));
    return value;
  }

  std::string text(const std::string& key) const {
    const YAML::Node value = required(key);
    if (!value.IsScalar() || value.Scalar().empty()) fail(key, fmt::format("must be text, got {}", shown(value)));
    return value.Scalar();
  }

  // The name of a file in the manifest's folder.
  std::string file_name(const std::string& key) const {
    std::string name = text(key);
    if (const std::string problem = file_name_problem(name); !problem.empty())
      fail(key, fmt::format("is '{}', which {}", name, problem));
    return name;
  }

  std::int64_t integer(const std::string& key, std::int64_t least, std::int64_t most) const {
    const YAML::Node value = required(key);
    std::int64_t number = 0;
    if (!value.IsScalar() || !YAML::convert<std::int64_t>::decode(value, number)) {
      fail(key, fmt::format("must be an integer, got {}", shown(value)));
    }
    if (number < least || number > most)
      fail(key, fmt::format("is {}, but must be from {} to {}", number, least, most));
    return number;
  }

 private:
  // A key that is not known may come with other programs' corpora or be misspelt: it is reported, and read past.
  void report_unknown(const std::string& key, const std::vector<std::string>& known) const {
    if (std::find(known.begin(), known.end(), key) != known.end()) return;
    const std::string nearest = nearest_name(key, known);
    log_warning("{}: {}the key '{}' is not known and is ignored{}", file_, prefix_, key,
                nearest.empty() ? std::string() : fmt::format(" (did you mean '{}'?)", nearest));
  }

  YAML::Node node_;
  std::string file_;
  std::string prefix_;  // "", or "shards[3]: "
};

TokenizerKind parse_tokenizer_kind(const Section& section) {
  const std::string name = section.text("kind");
  for (const auto& [known, kind] : tokenizer_names) {
    if (name == known) return kind;
  }
  section.fail("kind", fmt::format("is '{}', but must be sentencepiece, bytes or none", name));
}

DType parse_token_dtype(const Section& section) {
  const std::string name = section.text("dtype");
  if (name == "uint16") return DType::uint16;
  if (name == "uint32") return DType::uint32;
  section.fail("dtype", fmt::format("is '{}', but must be uint16 or uint32", name));
}

std::optional<std::string> parse_checksum(const Section& section, const std::string& key) {
  if (section.is_null(key)) return std::nullopt;
  std::string text = section.text(key);
  if (text.size() != 16 || text.find_first_not_of("0123456789abcdef") != std::string::npos)
    section.fail(key, "must be 16 lower-case hexadecimal digits, or null");
  return text;
}

CorpusShard parse_shard(const Section& section) {
  CorpusShard shard;
  shard.file = section.file_name("file");
  shard.tokens = section.integer("tokens", 0, most_counted);
  shard.documents = section.integer("documents", 0, shard.tokens);
  if (shard.tokens > 0 && shard.documents == 0) section.fail("documents", "is 0, but the shard has tokens");
  shard.xxh3 = parse_checksum(section, "xxh3");
  shard.document_ends_xxh3 = parse_checksum(section, "document_ends_xxh3");
  return shard;
}

void parse_tokenizer(const Section& top, const std::string& file, CorpusManifest& manifest) {
  const Section section(top.required("tokenizer"), file, "tokenizer: ", {"kind", "file", "xxh3"});
  manifest.tokenizer = parse_tokenizer_kind(section);
  if (!section.is_null("file")) manifest.tokenizer_file = section.file_name("file");
  manifest.tokenizer_xxh3 = parse_checksum(section, "xxh3");
  if (manifest.tokenizer == TokenizerKind::sentencepiece && manifest.tokenizer_file.empty()) {
    section.fail("the key 'file' is missing");
  }
}

// Whether it carries its checksum, which from version 2 on it must.
bool check_header(const Section& top, const std::string& text, const std::string& file) {
  const std::string format = top.text("format");
  if (format != format_name) top.fail("format", fmt::format("is '{}', but must be '{}'", format, format_name));
  const std::int64_t version = top.integer("version", 1, std::numeric_limits<std::int32_t>::max());
  if (version > format_version) {
    top.fail("version", fmt::format("is {}, but this program reads versions 1 to {}", version, format_version));
  }
  const bool sealed =
      check_seal(text, file,
                 "restore it; a manifest that was changed on purpose says version 1 and has no last line "
                 "with a checksum");
  if (!sealed && version > 1) top.fail("does not end with its checksum: it was cut short or changed");
  return sealed;
}

CorpusManifest parse_manifest(const std::string& text, const std::string& file) {
  const YAML::Node root = load_document(text, file, remedy);
  const Section top(
      root, file, "",
      {"format", "version", "vocabulary", "dtype", "end_of_document", "tokenizer", "shards", "text_bytes", "xxh3"});
  CorpusManifest manifest;
  manifest.sealed = check_header(top, text, file);
  manifest.dtype = parse_token_dtype(top);
  const std::int64_t most = manifest.dtype == DType::uint16 ? 65536 : std::numeric_limits<std::int32_t>::max();
  manifest.vocabulary = top.integer("vocabulary", 1, most);
  top.required("end_of_document");
  if (!top.is_null("end_of_document")) {
    manifest.end_of_document = top.integer("end_of_document", 0, manifest.vocabulary - 1);
  }
  parse_tokenizer(top, file, manifest);
  const YAML::Node shards = top.required("shards");
  if (!shards.IsSequence()) top.fail("shards", "must be a list");
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < shards.size(); ++i) {
    manifest.shards.push_back(parse_shard(Section(shards[i], file, fmt::format("shards[{}]: ", i),
                                                  {"file", "tokens", "documents", "xxh3", "document_ends_xxh3"})));
    tokens += manifest.shards.back().tokens;
    if (tokens > most_counted) top.fail("shards", fmt::format("hold more than {} tokens", most_counted));
  }
  if (!top.is_null("text_bytes")) {
    manifest.text_bytes = top.integer("text_bytes", 0, most_counted);
  }
  return manifest;
}

template <class Count>
std::int64_t sum_over(const std::vector<CorpusShard>& shards, Count count) {
  return std::transform_reduce(shards.begin(), shards.end(), std::int64_t{0}, std::plus<>(), count);
}

}  // namespace

std::string_view name_of(TokenizerKind kind) {
  for (const auto& [name, known] : tokenizer_names) {
    if (kind == known) return name;
  }
  throw InternalError("a tokeniser kind without a name");
}

std::int64_t CorpusManifest::tokens() const {
  return sum_over(shards, [](const CorpusShard& shard) { return shard.tokens; });
}

std::int64_t CorpusManifest::documents() const {
  return sum_over(shards, [](const CorpusShard& shard) { return shard.documents; });
}

CorpusManifest read_corpus_manifest(const std::filesystem::path& folder) {
  std::error_code error;
  if (!std::filesystem::exists(folder, error)) {
    throw UserError(folder.string(), "there is no such corpus folder",
                    "check the path, or make it with 'fulmen prepare'");
  }
  const std::filesystem::path path = folder / manifest_name;
  if (!std::filesystem::exists(path, error)) {
    throw UserError(folder.string(), fmt::format("is not a corpus: it has no {}", manifest_name),
                    "check the path, or make the corpus with 'fulmen prepare'");
  }
  const std::string source = path.string();
  return parse_manifest(read_document(path), source);
}

std::string corpus_identity(const CorpusManifest& manifest) {
  Hasher hasher;
  for (const CorpusShard& shard : manifest.shards) {
    if (!shard.xxh3) return {};
    hasher.update(shard.xxh3->data(), shard.xxh3->size());
  }
  return hasher.digest();
}

std::vector<std::string> unprotected(const CorpusManifest& manifest) {
  std::vector<std::string> list;
  if (!manifest.sealed) list.emplace_back("the manifest itself");
  if (!manifest.tokenizer_file.empty() && !manifest.tokenizer_xxh3) list.emplace_back("the tokeniser's file");
  const auto count = [&](const char* what, auto has) {
    const auto without = std::ranges::count_if(manifest.shards, [&](const CorpusShard& shard) { return !has(shard); });
    if (without > 0) list.push_back(fmt::format("the {} of {} of {} shards", what, without, manifest.shards.size()));
  };
  count("tokens", [](const CorpusShard& shard) { return shard.xxh3.has_value(); });
  count("document ends", [](const CorpusShard& shard) { return shard.document_ends_xxh3.has_value(); });
  return list;
}

namespace {

// Quoted: sixteen digits and an 'e' would be a number to some readers.
void emit_checksum(YAML::Emitter& out, const char* key, const std::optional<std::string>& xxh3) {
  out << YAML::Key << key << YAML::Value;
  if (xxh3) {
    out << YAML::DoubleQuoted << *xxh3;
  } else {
    out << YAML::Null;
  }
}

}  // namespace

void write_corpus_manifest(const std::filesystem::path& folder, const CorpusManifest& manifest) {
  YAML::Emitter out;
  out.SetNullFormat(YAML::LowerNull);
  out << YAML::BeginMap;
  out << YAML::Key << "format" << YAML::Value << std::string(format_name);
  out << YAML::Key << "version" << YAML::Value << format_version;
  out << YAML::Key << "vocabulary" << YAML::Value << manifest.vocabulary;
  out << YAML::Key << "dtype" << YAML::Value << std::string(name_of(manifest.dtype));
  out << YAML::Key << "end_of_document" << YAML::Value;
  if (manifest.end_of_document) {
    out << *manifest.end_of_document;
  } else {
    out << YAML::Null;
  }
  out << YAML::Key << "tokenizer" << YAML::Value << YAML::Flow << YAML::BeginMap;
  out << YAML::Key << "kind" << YAML::Value << std::string(name_of(manifest.tokenizer));
  if (!manifest.tokenizer_file.empty()) {
    out << YAML::Key << "file" << YAML::Value << manifest.tokenizer_file;
    emit_checksum(out, "xxh3", manifest.tokenizer_xxh3);
  }
  out << YAML::EndMap;
  if (manifest.text_bytes) out << YAML::Key << "text_bytes" << YAML::Value << *manifest.text_bytes;
  out << YAML::Key << "shards" << YAML::Value << YAML::BeginSeq;
  for (const CorpusShard& shard : manifest.shards) {
    out << YAML::Flow << YAML::BeginMap;
    out << YAML::Key << "file" << YAML::Value << shard.file;
    out << YAML::Key << "tokens" << YAML::Value << shard.tokens;
    out << YAML::Key << "documents" << YAML::Value << shard.documents;
    emit_checksum(out, "xxh3", shard.xxh3);
    emit_checksum(out, "document_ends_xxh3", shard.document_ends_xxh3);
    out << YAML::EndMap;
  }
  out << YAML::EndSeq << YAML::EndMap;
  FULMEN_CHECK(out.good(), "manifest: {}", out.GetLastError());
  write_text_atomically(folder / manifest_name, sealed(std::string(out.c_str()) + "\n"));
}

}  // namespace fulmen
