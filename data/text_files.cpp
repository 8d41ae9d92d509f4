// Names, folders and first bytes of text files.
#include "data/text_files.h"

#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <map>
#include <span>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "data/input_stream.h"
#include "framework/error.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr std::array<std::string_view, 3> json_endings{".jsonl", ".ndjson", ".json"};
// Endings of files that would be nonsense as text.
constexpr std::array<std::string_view, 18> foreign_endings{".bin", ".idx", ".h5",  ".hdf5", ".parquet",     ".arrow",
                                                           ".npy", ".tar", ".tgz", ".zip",  ".7z",          ".xz",
                                                           ".bz2", ".lz4", ".pdf", ".docx", ".safetensors", ".model"};

constexpr const char* taken_already = "taken already under another name";

template <class Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// The ending that says what the text is.
std::string ending_of(const fs::path& path) { return fs::path(stored_name(path).content).extension().string(); }

bool is_named_as_text(const fs::path& path) {
  const std::string ending = ending_of(path);
  return ending == ".txt" || contains(json_endings, ending);
}

void check_kind(const fs::path& path) {
  const std::string ending = ending_of(path);
  if (!contains(foreign_endings, ending)) return;
  throw UserError(path.string(), fmt::format("a {} file cannot be read as text", ending),
                  "give .txt or .jsonl files, plain or compressed with gzip or Zstandard");
}

// Nothing but white space, then the beginning of an object with a key.
bool begins_like_json(std::string_view head) {
  const std::size_t brace = head.find_first_not_of(" \t\r\n");
  if (brace == std::string_view::npos || head[brace] != '{') return false;
  const std::size_t quote = head.find_first_not_of(" \t\r\n", brace + 1);
  return quote != std::string_view::npos && head[quote] == '"';
}

// The name of an encoding in units of several bytes, or "". Without a mark, text in UTF-16 is known by zero bytes.
// UTF-8 has none. In UTF-16 the same half of every ASCII character is zero.
std::string_view wide_encoding(std::string_view head) {
  using namespace std::string_view_literals;
  if (head.starts_with("\xff\xfe\0\0"sv) || head.starts_with("\0\0\xfe\xff"sv)) return "UTF-32";
  if (head.starts_with("\xff\xfe"sv) || head.starts_with("\xfe\xff"sv)) return "UTF-16";
  std::array<std::size_t, 2> zeros{};
  for (std::size_t i = 0; i < head.size(); ++i) zeros[i % 2] += head[i] == '\0' ? 1 : 0;
  const bool one_half = (zeros[0] == 0) != (zeros[1] == 0);
  const std::size_t count = zeros[0] + zeros[1];
  return one_half && count > 1 && count * 16 >= head.size() ? "UTF-16" : "";
}

// Names for a message: the first few, and how many more there are.
std::string first_of(std::vector<std::string> names) {
  constexpr std::size_t most = 5;
  const std::size_t count = names.size();
  names.resize(std::min(count, most));
  return join(names, ", ") + (count > most ? fmt::format(" and {} more", count - most) : "");
}

class Lister {
 public:
  TextListing take() { return std::move(listing_); }

  void add_input(const fs::path& input) {
    struct stat status {};
    if (::stat(input.c_str(), &status) != 0) {
      if (errno == ENOENT || errno == ENOTDIR) refuse_missing(input);
      throw UserError(input.string(), "cannot be looked at: " + std::generic_category().message(errno),
                      "check the path and its permissions");
    }
    if (S_ISDIR(status.st_mode)) {
      if (is_new(input, status)) add_named_folder(input);
    } else if (S_ISREG(status.st_mode)) {
      check_kind(input);
      if (is_new(input, status)) add_file(input, status);
    } else {
      throw UserError(input.string(), "is neither a file nor a folder",
                      "the input is read more than once: store it first");
    }
  }

 private:
  [[noreturn]] static void refuse_missing(const fs::path& input) {
    std::error_code error;
    if (fs::is_symlink(fs::symlink_status(input, error))) refuse_dangling(input);
    throw UserError(input.string(), "there is no such file or folder", "check the path");
  }

  [[noreturn]] static void refuse_dangling(const fs::path& link) {
    std::error_code error;
    throw UserError(link.string(),
                    fmt::format("is a link to {}, which is not there", fs::read_symlink(link, error).string()),
                    "get the file that it stands for, or remove the link");
  }

  void add_named_folder(const fs::path& folder) {
    const std::size_t taken = listing_.files.size(), left_out = listing_.left_out.size();
    add_folder(folder);
    const std::span<const TextListing::LeftOut> inside = std::span(listing_.left_out).subspan(left_out);
    const auto again = [](const TextListing::LeftOut& file) { return file.why == taken_already; };
    if (listing_.files.size() > taken || std::ranges::any_of(inside, again)) return;
    std::string what = "holds no .txt, .jsonl, .ndjson or .json files (plain, .gz, .dz or .zst)";
    for (const std::string& line : text_file_warnings({{}, {inside.begin(), inside.end()}})) what += "; " + line;
    throw UserError(folder.string(), what, "name the files one by one if their names end otherwise");
  }

  void leave_out(std::string name, std::string why) { listing_.left_out.push_back({std::move(name), std::move(why)}); }

  // False, and left out, when another name has led to it before.
  bool is_new(const fs::path& path, const struct stat& status) {
    const auto [known, fresh] = known_.emplace(std::pair(status.st_dev, status.st_ino), path);
    if (!fresh) leave_out(fmt::format("{} (as {})", path.string(), known->second.string()), taken_already);
    return fresh;
  }

  void add_file(const fs::path& path, const struct stat& status) {
    InputStream stream(path);
    std::array<char, text_head_bytes> buffer;
    const std::string_view head(buffer.data(), stream.read(buffer));
    check_text_head(path, head);
    const TextKind kind = text_kind_of_name(path);
    listing_.files.push_back({path, kind, status.st_size, kind == TextKind::plain && begins_like_json(head)});
  }

  void add_folder(const fs::path& folder) {
    std::error_code error;
    std::vector<fs::path> entries;
    for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator();
         entry.increment(error))
      entries.push_back(entry->path());
    if (error) {
      throw UserError(folder.string(), "cannot be walked: " + error.message(), "check the folder and its permissions");
    }
    std::sort(entries.begin(), entries.end());
    for (const fs::path& entry : entries) add_entry(entry);
  }

  void add_entry(const fs::path& path) {
    if (path.filename().native().starts_with('.')) return leave_out(path.string(), "hidden");
    struct stat status {};
    if (::stat(path.c_str(), &status) != 0) {
      // A link in a circle is one to nothing, too.
      if (errno != ENOENT && errno != ELOOP && errno != ENOTDIR) {
        throw UserError(path.string(), "cannot be looked at: " + std::generic_category().message(errno),
                        "check the folder and its permissions");
      }
      if (is_named_as_text(path)) refuse_dangling(path);
      return leave_out(path.string(), "a link to nothing");
    }
    if (S_ISDIR(status.st_mode)) {
      if (is_new(path, status)) add_folder(path);
      return;
    }
    if (!S_ISREG(status.st_mode)) return leave_out(path.string(), "neither a file nor a folder");
    if (!is_named_as_text(path)) {
      return leave_out(path.string(), "not named as text (name the file itself to have it read)");
    }
    if (is_new(path, status)) add_file(path, status);
  }

  TextListing listing_;
  std::map<std::pair<dev_t, ino_t>, fs::path> known_;
};

}  // namespace

TextKind text_kind_of_name(const fs::path& path) {
  return contains(json_endings, ending_of(path)) ? TextKind::json_lines : TextKind::plain;
}

TextListing list_text_files(const std::vector<fs::path>& inputs) {
  Lister lister;
  for (const fs::path& input : inputs) lister.add_input(input);
  return lister.take();
}

void check_text_head(const fs::path& path, std::string_view head) {
  head = head.substr(0, text_head_bytes);
  if (const std::string_view encoding = wide_encoding(head); !encoding.empty()) {
    throw UserError(path.string(), fmt::format("is in {}, text is read as UTF-8", encoding),
                    fmt::format("convert it: iconv -f {} -t UTF-8", encoding));
  }
}

std::string describe_files(const TextListing& listing) {
  std::size_t json = 0;
  double bytes = 0.0;
  for (const TextFile& file : listing.files) {
    json += file.kind == TextKind::json_lines ? 1 : 0;
    bytes += static_cast<double>(file.bytes);
  }
  return fmt::format("input: {} files of plain text, {} of JSON lines, {}", listing.files.size() - json, json,
                     human_bytes(bytes));
}

std::vector<std::string> text_file_warnings(const TextListing& listing) {
  std::map<std::string, std::vector<std::string>> left_out;
  for (const TextListing::LeftOut& file : listing.left_out) left_out[file.why].push_back(file.name);
  std::vector<std::string> lines;
  for (const auto& [why, names] : left_out) lines.push_back(fmt::format("left out, {}: {}", why, first_of(names)));
  std::vector<std::string> like_json;
  for (const TextFile& file : listing.files)
    if (file.begins_like_json) like_json.push_back(file.path.string());
  if (!like_json.empty()) {
    lines.push_back(
        fmt::format("read as plain text, as named, but begins like JSON lines (.jsonl): {}", first_of(like_json)));
  }
  return lines;
}

}  // namespace fulmen
