// Reading parts of a file, each with a check.
#include "framework/hdf5_bytes.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/outside_files.h"

namespace fulmen::hdf5 {

void refuse_damage(const std::string& where, const std::string& what) {
  throw UserError(where, fmt::format("its structure is damaged: {}", what), "restore the file, or make it anew");
}

void refuse_kind(const std::string& where, const std::string& what) {
  throw UserError(where, fmt::format("{}, which is not read here", what),
                  "rewrite it with the tool of HDF5: h5repack --low=0 -f NONE OLD NEW (docs/formats.md)");
}

std::string_view Part::take(std::uint64_t bytes) {
  if (bytes > left()) refuse_damage(where_, "a part of it ends too early");
  const auto* begin = reinterpret_cast<const char*>(bytes_.data()) + used_;
  used_ += bytes;
  return {begin, static_cast<std::size_t>(bytes)};
}

std::uint64_t Part::number(std::size_t bytes) {
  std::uint64_t value = 0;
  const std::string_view taken = take(bytes);
  for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(taken[i]);
  return value;
}

void Part::expect(std::string_view signature) {
  if (take(signature.size()) != signature)
    refuse_damage(where_, fmt::format("'{}' is not where it must be", signature));
}

std::string Part::text_at(std::uint64_t offset) const {
  const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(std::min<std::uint64_t>(offset, size()));
  const auto end = std::find(begin, bytes_.end(), '\0');
  if (end == bytes_.end()) refuse_damage(where_, "a name has no end");
  return {begin, end};
}

std::string Part::text() {
  std::string found = text_at(used_);
  used_ += found.size() + 1;
  return found;
}

void Part::copy(void* target, std::uint64_t bytes) {
  const std::string_view taken = take(bytes);
  std::copy(taken.begin(), taken.end(), static_cast<char*>(target));
}

void Part::go_to(std::uint64_t offset) {
  if (offset > size()) refuse_damage(where_, "a part of it ends too early");
  used_ = offset;
}

FileBytes::FileBytes(const std::filesystem::path& path) : where_(path.string()), file_(open_regular_file(path)) {
  struct stat status {};
  if (::fstat(file_.get(), &status) != 0) throw_system_error("cannot tell the size of " + where_);
  size_ = static_cast<std::uint64_t>(status.st_size);
}

void FileBytes::require_inside(std::uint64_t address, std::uint64_t bytes, const std::string& where) const {
  if (bytes > size_ || address > size_ - bytes)
    refuse_damage(where, fmt::format("{} bytes at {} are beyond the end of the file", bytes, address));
}

Part FileBytes::read(std::uint64_t address, std::uint64_t bytes) const {
  constexpr std::uint64_t most = std::uint64_t{64} << 20;
  require_inside(address, bytes, where_);
  if (bytes > most) refuse_damage(where_, fmt::format("a part that describes others has {} bytes", bytes));
  std::vector<unsigned char> read(static_cast<std::size_t>(bytes));
  for (std::size_t done = 0; done < read.size();) {
    const ssize_t got =
        ::pread(file_.get(), read.data() + done, read.size() - done, static_cast<off_t>(address + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw UserError(where_, "cannot be read: " + std::generic_category().message(errno), "check the disk");
    if (got == 0) refuse_damage(where_, "it has become shorter while it was read");
    done += static_cast<std::size_t>(got);
  }
  return Part(std::move(read), where_);
}

}  // namespace fulmen::hdf5
