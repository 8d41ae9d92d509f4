// The bytes of a file, decompressed on the way: plain, gzip (several members and dictzip's chunks too) or Zstandard.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace fulmen {

enum class Compression { none, gzip, zstd };

// The meaning of a file's name, in lower case: the compression by its ending, and the name without it. Endings are .gz,
// .gzip and .dz, .zst and .zstd. The number of a share behind an ending (-00001-of-00010) is left out of it.
struct StoredName {
  Compression compression = Compression::none;
  std::string content;
};
StoredName stored_name(const std::filesystem::path& path);

class InputStream {
 public:
  // The first bytes decide how the file is read. Throws UserError when it cannot be opened, or when its name promises a
  // compression that they do not show.
  explicit InputStream(const std::filesystem::path& path);
  ~InputStream();
  InputStream(InputStream&&) noexcept;

  // Fills `out` from the front; less than its size only at the end. Throws UserError for damaged or truncated data.
  std::size_t read(std::span<char> out);
  std::int64_t file_bytes_read() const;  // of the file as it is stored
  Compression compression() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulmen
