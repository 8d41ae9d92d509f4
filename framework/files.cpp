// Reading, and writing that survives a crash. System calls throughout: the standard streams cannot flush to disk.
#include "framework/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <random>
#include <system_error>

#include <fmt/format.h>

#include "framework/descriptor.h"
#include "framework/document_limits.h"
#include "framework/error.h"
#include "framework/outside_files.h"
#include "framework/text.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

std::string reason(int code) { return std::generic_category().message(code); }

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

// A file that did not exist before, in `folder`; its name is put in `path`. A negative descriptor: errno says why.
Descriptor create_unique(const fs::path& folder, const std::string& stem, fs::path& path) {
  std::random_device random;
  for (int attempt = 0; attempt < 16; ++attempt) {
    path = folder / fmt::format(".{}.{:08x}.tmp", stem, random());
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0 || errno != EEXIST) return Descriptor(fd);
  }
  return Descriptor(-1);
}

// Returns 0, or the error's number.
int write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    text.remove_prefix(static_cast<std::size_t>(written));
  }
  return 0;
}

[[noreturn]] void throw_unwritable(const fs::path& path, int code) {
  throw UserError(path.string(), "cannot be written: " + reason(code),
                  code == ENOSPC || code == EDQUOT ? "free some space there, or choose another place"
                                                   : "check the folder and its permissions, or choose another place");
}

int write_flush_close(Descriptor& file, std::string_view text) {
  if (const int code = write_all(file.get(), text); code != 0) return code;
  if (::fsync(file.get()) != 0) return errno;
  return file.close() == 0 ? 0 : errno;
}

// Fills the front of `piece`; 0 at the end.
std::size_t read_some(const Descriptor& file, const fs::path& path, std::string& piece) {
  ssize_t got = 0;
  do {
    got = ::read(file.get(), piece.data(), piece.size());
  } while (got < 0 && errno == EINTR);
  if (got < 0) throw UserError(path.string(), "cannot be read: " + reason(errno), "check the disk");
  return static_cast<std::size_t>(got);
}

}  // namespace

std::string read_text(const fs::path& path, std::size_t most_bytes) {
  const Descriptor file = open_regular_file(path);
  const auto refuse_length = [&] {
    throw UserError(
        path.string(),
        fmt::format("is larger than {}, more than such a file has", human_bytes(static_cast<double>(most_bytes))),
        "check the path");
  };
  struct stat status {};
  if (::fstat(file.get(), &status) == 0 && static_cast<std::uint64_t>(status.st_size) > most_bytes) refuse_length();
  std::string text;
  std::string piece(std::size_t{1} << 16, '\0');
  while (const std::size_t got = read_some(file, path, piece)) {
    text.append(piece, 0, got);
    if (text.size() > most_bytes) refuse_length();  // it has grown
  }
  return text;
}

void for_each_line(const fs::path& path, std::size_t most_bytes,
                   const std::function<void(const std::string& line)>& f) {
  const Descriptor file = open_regular_file(path);
  std::string piece(std::size_t{1} << 16, '\0'), line;
  const auto add = [&](std::string_view text) {
    if (line.size() + text.size() > most_bytes)
      throw UserError(path.string(),
                      fmt::format("holds a line of more than {}", human_bytes(static_cast<double>(most_bytes))),
                      "it is damaged: remove the line, or move the file away");
    line += text;
  };
  while (const std::size_t got = read_some(file, path, piece)) {
    std::string_view rest(piece.data(), got);
    for (std::size_t end = rest.find('\n'); end != std::string_view::npos; end = rest.find('\n')) {
      add(rest.substr(0, end));
      f(line);
      line.clear();
      rest.remove_prefix(end + 1);
    }
    add(rest);
  }
  if (!line.empty()) f(line);
}

std::string read_document(const fs::path& path) { return read_text(path, longest_document); }

std::string expand_home(const std::string& path, const std::string& where) {
  if (!path.starts_with('~')) return path;
  if (path.size() > 1 && path[1] != '/') {
    throw UserError(where, fmt::format("{} begins with the home folder of a user", path),
                    fmt::format("write the folder in full, or ./{} for a file of that name", path));
  }
  const char* home = std::getenv("HOME");
  if (home == nullptr || *home == '\0') {
    throw UserError(where, fmt::format("{} names the home folder, but $HOME is not set", path),
                    "write the path in full");
  }
  return home + path.substr(1);
}

void write_text_atomically(const fs::path& path, std::string_view text) {
  fs::path temporary;
  Descriptor file = create_unique(folder_of(path), path.filename().string(), temporary);
  if (file.get() < 0) throw_unwritable(path, errno);
  int code = write_flush_close(file, text);
  if (code == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) code = errno;
  if (code != 0) {
    ::unlink(temporary.c_str());
    throw_unwritable(path, code);
  }
  flush_to_disk(folder_of(path));
}

void ensure_writable_folder(const fs::path& path, std::string_view what_for) {
  const auto refuse = [&](const std::string& why) {
    throw UserError(path.string(), fmt::format("cannot be used as {}: {}", what_for, why),
                    "check its permissions, or choose another folder");
  };
  std::error_code error;
  fs::create_directories(path, error);
  if (error) refuse(error.message());
  if (!fs::is_directory(path, error)) refuse("it is not a folder");
  fs::path probe;
  const Descriptor file = create_unique(path, "probe", probe);
  if (file.get() < 0) refuse(reason(errno));
  ::unlink(probe.c_str());
}

void flush_to_disk(const fs::path& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw_system_error("cannot open " + path.string() + " to flush it to disk");
  // EINVAL: this file system has no flushing of folders.
  if (::fsync(file.get()) != 0 && errno != EINVAL) throw_system_error("cannot flush " + path.string() + " to disk");
}

std::uint64_t free_bytes(const fs::path& path) {
  std::error_code error;
  fs::path place = fs::absolute(path, error);
  while (!fs::exists(place, error) && place.has_relative_path()) place = place.parent_path();
  struct statvfs disk {};
  if (::statvfs(place.c_str(), &disk) != 0) throw_system_error("cannot ask for the free space at " + place.string());
  return static_cast<std::uint64_t>(disk.f_bavail) * disk.f_frsize;
}

}  // namespace fulmen
