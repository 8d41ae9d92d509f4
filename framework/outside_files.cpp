// The rule for names, and the opening of ordinary files only.
#include "framework/outside_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

#include <fmt/format.h>

#include "framework/error.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t longest_name = 255;  // of a file, on the file systems of Linux

std::string_view kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder (directory)";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

void require_regular(const fs::path& path, const struct stat& status) {
  if (S_ISREG(status.st_mode)) return;
  throw UserError(path.string(), fmt::format("is {}, not a file", kind_of(status.st_mode)),
                  "check the path; what a pipe or a device gives must be written into a file first");
}

[[noreturn]] void throw_unreadable(const fs::path& path) {
  throw UserError(path.string(), "cannot be read: " + std::generic_category().message(errno),
                  "check the path and its permissions");
}

// Version control's placeholder for a large file must not be taken for damage.
void refuse_pointer(const fs::path& path, std::string_view head) {
  if (head.starts_with("version https://git-lfs.github.com/spec/")) {
    throw UserError(path.string(), "is a Git LFS pointer, not the file that it stands for",
                    "fetch the content with 'git lfs pull', or download the file");
  }
  if (head.starts_with("/annex/objects/")) {
    throw UserError(path.string(), "is a git-annex pointer, not the file that it stands for",
                    "fetch the content with 'git annex get', or download the file");
  }
}

}  // namespace

std::string file_name_problem(std::string_view name) {
  if (name.empty()) return "is empty";
  if (name.size() > longest_name) return fmt::format("has {} bytes, more than a file name may", name.size());
  if (name == "." || name == "..") return "is a folder";
  if (name.find('/') != std::string_view::npos) return "holds a '/': it must name a file in the same folder";
  const auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };
  if (std::ranges::any_of(name, control)) return "holds a control character";
  return {};
}

void require_regular_file(const fs::path& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) throw_unreadable(path);
  require_regular(path, status);
}

Descriptor open_regular_file(const fs::path& path) {
  require_regular_file(path);
  // Another thing may have taken its place since; O_NONBLOCK keeps the opening of a FIFO from waiting for a writer.
  Descriptor file(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  struct stat status {};
  if (file.get() < 0 || ::fstat(file.get(), &status) != 0) throw_unreadable(path);
  require_regular(path, status);
  std::array<char, 64> head;
  const ssize_t got = ::pread(file.get(), head.data(), head.size(), 0);
  if (got < 0) throw_unreadable(path);
  refuse_pointer(path, {head.data(), static_cast<std::size_t>(got)});
  return file;
}

}  // namespace fulmen
