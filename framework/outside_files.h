// Files that come from outside, and the names of files that such files give. Every reader of a manifest, an index, a
// configuration or a data file goes through these, so that the same rule holds for all.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "framework/descriptor.h"

namespace fulmen {

// The problem with a file name that a manifest or an index gives for a file in its folder, or "". It must be
// a plain name: no folder in it, neither "." nor "..", no control character, at most 255 bytes.
std::string file_name_problem(std::string_view name);

// Throws UserError unless `path` is, or links to, an ordinary file. A missing file, a folder, a FIFO, a socket and a
// device are refused without being opened.
void require_regular_file(const std::filesystem::path& path);

// Opens an ordinary file for reading; nothing else is waited for. Throws UserError, also for the pointer that Git LFS
// or git-annex leaves in place of a file's content.
Descriptor open_regular_file(const std::filesystem::path& path);

}  // namespace fulmen
