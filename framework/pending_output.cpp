// Claims, and moving into place: by exchange where the file system can, so that no moment is without a result.
#include "framework/pending_output.h"

#include <fcntl.h>
#include <stdio.h>  // renameat2
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <system_error>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/log.h"
#include "framework/outside_files.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr const char* mark_name = ".fulmen-partial";
constexpr const char* permit = "choose another name, or permit to replace it with --overwrite";

std::string reason(int code) { return std::generic_category().message(code); }

[[noreturn]] void throw_unwritable(const fs::path& path, const std::string& why) {
  throw UserError(path.string(), "cannot be written: " + why,
                  "check the folder, its permissions and its free space, or choose another place");
}

// Without links and a trailing separator, so that it has a parent and a name.
fs::path settled(const fs::path& path) {
  std::error_code error;
  fs::path whole = fs::weakly_canonical(fs::absolute(path, error), error);
  if (error || path.empty()) throw_unwritable(path, error ? error.message() : "it has no name");
  if (!whole.has_filename()) whole = whole.parent_path();
  if (!whole.has_filename()) throw_unwritable(path, "it has no name");
  return whole;
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);  // of a symbolic link: the link alone
  if (error) throw_unwritable(path, "it is in the way and cannot be removed: " + error.message());
}

// Moves where nothing is, or an empty folder; 0 or the error's number.
int move_to_free_name(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return 0;
  if (errno != EINVAL && errno != ENOSYS) return errno;
  // This file system does not know the flag.
  std::error_code error;
  if (fs::exists(fs::symlink_status(to, error))) return EEXIST;
  return ::rename(from.c_str(), to.c_str()) == 0 ? 0 : errno;
}

}  // namespace

PendingOutput::PendingOutput(const fs::path& path, Kind kind, bool overwrite,
                             const std::function<bool(const std::string&)>& is_part)
    : path_(settled(path)), partial_(path_), kind_(kind), overwrite_(overwrite) {
  partial_ += ".partial";
  place_ = partial_ / path_.filename();
  refuse_what_is_there(is_part);
  ensure_writable_folder(path_.parent_path(), "the place of " + path.string());
  claim();
}

PendingOutput::~PendingOutput() {
  std::error_code error;  // the first error is shown
  if (claimed_) fs::remove_all(partial_, error);
}

void PendingOutput::refuse_what_is_there(const std::function<bool(const std::string&)>& is_part) const {
  std::error_code error;
  const fs::file_status status = fs::status(path_, error);
  if (!fs::exists(status)) return;
  if (kind_ == Kind::file) {
    require_regular_file(path_);
    if (!overwrite_) throw UserError(path_.string(), "is there already", permit);
    return;
  }
  if (!fs::is_directory(status)) {
    throw UserError(path_.string(), "a file stands where the folder should go",
                    "move it away, or choose another place");
  }
  for (fs::directory_iterator entry(path_, error), end; !error && entry != end; entry.increment(error)) {
    if (!overwrite_) throw UserError(path_.string(), "is there already, and not empty", permit);
    const std::string name = entry->path().filename().string();
    if (is_part && is_part(name)) continue;
    throw UserError(path_.string(), fmt::format("holds {}, which is no part of what would be replaced", name),
                    "move it away, or choose another place");
  }
  if (error) throw_unwritable(path_, error.message());
}

void PendingOutput::claim() {
  if (::mkdir(partial_.c_str(), 0777) != 0) {
    if (errno != EEXIST) throw_unwritable(partial_, reason(errno));
    take_leftover();
    if (::mkdir(partial_.c_str(), 0777) != 0) throw_unwritable(partial_, reason(errno));
  }
  claimed_ = true;
  const fs::path mark = partial_ / mark_name;
  mark_ = Descriptor(::open(mark.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (mark_.get() < 0) throw_unwritable(mark, reason(errno));
  // Without locks on this file system a leftover cannot be told from work in progress, and is refused.
  if (::flock(mark_.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    claimed_ = false;
    throw UserError(path_.string(), "another program is writing there", "wait for it, or choose another place");
  }
}

// Removes NAME.partial when no process writes there, or throws.
void PendingOutput::take_leftover() {
  const Descriptor mark(::open((partial_ / mark_name).c_str(), O_RDWR | O_CLOEXEC));
  const bool ours = mark.get() >= 0;
  const bool locked = ours && ::flock(mark.get(), LOCK_EX | LOCK_NB) == 0;
  if (ours && !locked && errno == EWOULDBLOCK) {
    throw UserError(path_.string(), "another program is writing there", "wait for it, or choose another place");
  }
  if (!locked && !overwrite_) {
    throw UserError(partial_.string(),
                    fmt::format("is in the way: {} is written there first", path_.filename().string()),
                    "move it away, or permit to remove it with --overwrite");
  }
  if (locked) log_warning("{}: what an interrupted attempt left is removed", partial_.string());
  remove_tree(partial_);
}

void PendingOutput::complete() {
  flush_to_disk(place_);
  int code = move_to_free_name(place_, path_);
  std::error_code error;
  if (code == EEXIST && kind_ == Kind::folder && fs::is_empty(path_, error)) {
    code = ::rename(place_.c_str(), path_.c_str()) == 0 ? 0 : errno;
  } else if (code == EEXIST && overwrite_) {
    code = ::renameat2(AT_FDCWD, place_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) == 0 ? 0 : errno;
    if (code == EINVAL || code == ENOSYS) {  // this file system cannot exchange
      const bool moved = ::rename(path_.c_str(), (partial_ / "replaced").c_str()) == 0;
      code = moved && ::rename(place_.c_str(), path_.c_str()) == 0 ? 0 : errno;
    }
  }
  if (code == EEXIST) throw UserError(path_.string(), "has come to stand there meanwhile", permit);
  if (code != 0) throw_unwritable(path_, reason(code));
  flush_to_disk(path_.parent_path());
  claimed_ = false;
  remove_tree(partial_);
}

}  // namespace fulmen
