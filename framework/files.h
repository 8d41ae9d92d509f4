// Files written so that a crash leaves either the old content or the new content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace fulmen {

// The content of an ordinary file of at most `most_bytes`. Throws UserError for anything else.
inline constexpr std::size_t longest_text = std::size_t{1} << 28;
std::string read_text(const std::filesystem::path& path, std::size_t most_bytes = longest_text);
// The same for YAML and JSON, as long as framework/document_limits.h allows.
std::string read_document(const std::filesystem::path& path);
// Calls f(line) for each line of an ordinary file, without its end; the last may want it. Throws UserError for anything
// else, for a line of more than `most_bytes`, and where it cannot be read to its end.
void for_each_line(const std::filesystem::path& path, std::size_t most_bytes,
                   const std::function<void(const std::string& line)>& f);
// The home folder for `~` at the beginning of a path, as shells have it. Throws UserError for `~name` (`where` is the
// flag or key that holds it), and when there is no $HOME.
std::string expand_home(const std::string& path, const std::string& where);
// Writes to a temporary in the folder of `path`, flushes to disk, renames. Throws UserError when the place is not
// writable.
void write_text_atomically(const std::filesystem::path& path, std::string_view text);
// Creates the folder and its parents, and checks that a file can be made in it. Throws UserError.
void ensure_writable_folder(const std::filesystem::path& path, std::string_view what_for);
void flush_to_disk(const std::filesystem::path& path);  // fsync of a file or a folder
// Bytes of the file's disk that are free.
std::uint64_t free_bytes(const std::filesystem::path& path);

}  // namespace fulmen
