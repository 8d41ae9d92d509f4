// Which files are text, and of what kind: decided by their names, checked against their first bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace fulmen {

enum class TextKind { plain, json_lines };

// The meaning of the name, without the endings of a compression and of a share (-00001-of-00010), whatever their case.
// JSON lines end in .jsonl, .ndjson or .json; every other name is plain text.
TextKind text_kind_of_name(const std::filesystem::path& path);

struct TextFile {
  std::filesystem::path path;
  TextKind kind = TextKind::plain;
  std::int64_t bytes = 0;         // as it is stored
  bool begins_like_json = false;  // plain by its name, but the first line begins as a JSON object does
};

struct TextListing {
  struct LeftOut {
    std::string name;
    std::string why;
  };
  std::vector<TextFile> files;
  std::vector<LeftOut> left_out;
};

// The files meant by `inputs`. A file that is named itself may have any name. Folders are walked in alphabetical order,
// links followed, for .txt and JSON lines, plain or compressed. Hidden names and names of other kinds are left out. A
// file or folder is taken once, however many names lead to it. Each file is opened, so that what cannot be read is
// known before the first is.
//
// Throws UserError for a path that does not exist, a link to text that is gone, and a folder without such files. Also
// for a kind of file that holds no text, and as check_text_head does.
TextListing list_text_files(const std::vector<std::filesystem::path>& inputs);

// `head`: what the text begins with, all of it or at least text_head_bytes. Throws UserError for UTF-16 and UTF-32,
// with or without a byte order mark.
constexpr std::size_t text_head_bytes = 4096;
void check_text_head(const std::filesystem::path& path, std::string_view head);

// For people: how many files are read as what; and, a line each, what is left out by which rule and what may be
// misread.
std::string describe_files(const TextListing& listing);
std::vector<std::string> text_file_warnings(const TextListing& listing);

}  // namespace fulmen
