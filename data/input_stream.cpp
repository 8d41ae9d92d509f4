// zlib and Zstandard, streamed through one buffer of file bytes.
#include "data/input_stream.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "framework/descriptor.h"
#include "framework/error.h"
#include "framework/outside_files.h"

namespace fulmen {

namespace {

constexpr std::size_t file_buffer_bytes = std::size_t{1} << 17;
constexpr int largest_window_log = 31;  // the most that the zstd program makes: 2 GiB
constexpr const char* copy_again = "copy or download the file again";

bool is_gzip(std::span<const unsigned char> head) { return head.size() >= 2 && head[0] == 0x1f && head[1] == 0x8b; }

// A frame, or a skippable one (RFC 8878, sections 3.1.1 and 3.1.2).
bool is_zstd(std::span<const unsigned char> head) {
  if (head.size() < 4) return false;
  if (head[0] == 0x28 && head[1] == 0xb5 && head[2] == 0x2f && head[3] == 0xfd) return true;
  return (head[0] & 0xf0) == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18;
}

constexpr std::array<std::pair<std::string_view, Compression>, 5> compression_endings{{{".gz", Compression::gzip},
                                                                                       {".gzip", Compression::gzip},
                                                                                       {".dz", Compression::gzip},
                                                                                       {".zst", Compression::zstd},
                                                                                       {".zstd", Compression::zstd}}};

// "a.json" for "a.json-00001-of-00010".
std::string without_share(const std::string& name) {
  const auto digits_before = [&](std::size_t end) {
    std::size_t begin = end;
    while (begin > 0 && name[begin - 1] >= '0' && name[begin - 1] <= '9') --begin;
    return begin;
  };
  constexpr std::string_view of = "-of-";
  const std::size_t count = digits_before(name.size());
  if (count == name.size() || !std::string_view(name).substr(0, count).ends_with(of)) return name;
  const std::size_t number = digits_before(count - of.size());
  if (number == count - of.size() || number == 0 || name[number - 1] != '-') return name;
  return name.substr(0, number - 1);
}

class Inflater {
 public:
  Inflater() {
    constexpr int gzip_format = 16;
    FULMEN_CHECK(inflateInit2(&stream_, MAX_WBITS + gzip_format) == Z_OK, "zlib does not start");
  }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  z_stream& stream() { return stream_; }

 private:
  z_stream stream_{};
};

struct FreeDecompressor {
  void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
};

}  // namespace

StoredName stored_name(const std::filesystem::path& path) {
  std::string name = path.filename().string();
  std::transform(name.begin(), name.end(), name.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  const std::string whole = without_share(name);
  for (const auto& [ending, compression] : compression_endings)
    if (whole.ends_with(ending)) return {compression, without_share(whole.substr(0, whole.size() - ending.size()))};
  return {Compression::none, whole};
}

struct InputStream::State {
  std::filesystem::path path;
  Descriptor file;
  bool at_end = false;  // of the file
  Compression compression = Compression::none;
  std::vector<unsigned char> buffer = std::vector<unsigned char>(file_buffer_bytes);
  std::size_t used = 0, filled = 0;  // of the buffer
  std::int64_t file_bytes = 0;
  bool between_frames = false;  // the compressed data may end here
  std::unique_ptr<Inflater> inflater;
  std::unique_ptr<ZSTD_DStream, FreeDecompressor> decompressor;

  [[noreturn]] void fail(const std::string& what, const std::string& remedy) const {
    throw UserError(path.string(), what, remedy);
  }

  void open() {
    file = open_regular_file(path);
    refill();
    const std::span<const unsigned char> head(buffer.data(), filled);
    compression = is_gzip(head) ? Compression::gzip : is_zstd(head) ? Compression::zstd : Compression::none;
    const Compression named = stored_name(path).compression;
    if (named != Compression::none && named != compression) {
      fail(fmt::format("is named as {} data, but does not begin as such",
                       named == Compression::gzip ? "gzip" : "Zstandard"),
           filled == 0 ? std::string("the file is empty; ") + copy_again : "give the file its true name");
    }
    if (compression == Compression::gzip) inflater = std::make_unique<Inflater>();
    if (compression == Compression::zstd) {
      decompressor.reset(ZSTD_createDStream());
      FULMEN_CHECK(decompressor != nullptr, "Zstandard does not start");
      // By default it refuses windows above 128 MiB, which `zstd --long=28` and more make.
      const std::size_t set = ZSTD_DCtx_setParameter(decompressor.get(), ZSTD_d_windowLogMax, largest_window_log);
      FULMEN_CHECK(ZSTD_isError(set) == 0U, "Zstandard takes no window of 2^{}: {}", largest_window_log,
                   ZSTD_getErrorName(set));
    }
  }

  // False at the end of the file.
  bool refill() {
    used = 0;
    ssize_t got = 0;
    do {
      got = ::read(file.get(), buffer.data(), buffer.size());
    } while (got < 0 && errno == EINTR);
    if (got < 0) fail("cannot be read: " + std::generic_category().message(errno), "check the disk");
    filled = static_cast<std::size_t>(got);
    at_end = got == 0;
    file_bytes += static_cast<std::int64_t>(filled);
    return filled > 0;
  }

  [[noreturn]] void fail_truncated() const {
    fail(fmt::format("the {} data ends too early: the file is truncated",
                     compression == Compression::gzip ? "gzip" : "Zstandard"),
         copy_again);
  }

  [[noreturn]] void fail_damaged(const char* reason) const {
    fail(fmt::format("damaged {} data ({})", compression == Compression::gzip ? "gzip" : "Zstandard",
                     reason == nullptr ? "no reason given" : reason),
         copy_again);
  }

  [[noreturn]] void fail_zstd(std::size_t result) const {
    switch (ZSTD_getErrorCode(result)) {
      case ZSTD_error_frameParameter_windowTooLarge:
        fail("was compressed with a window of more than 2 GiB", "compress it anew with zstd --long=31 or less");
      case ZSTD_error_memory_allocation:
        fail("was compressed with a window (zstd --long) that this machine has no memory for",
             "compress it anew with a smaller window, or use a machine with more memory");
      default: fail_damaged(ZSTD_getErrorName(result));
    }
  }

  std::size_t read_plain(std::span<char> out) {
    std::size_t done = 0;
    while (done < out.size() && (used < filled || refill())) {
      const std::size_t count = std::min(out.size() - done, filled - used);
      std::copy_n(buffer.data() + used, count, out.data() + done);
      used += count;
      done += count;
    }
    return done;
  }

  // After a member: skips zero padding (tapes, some archivers). False when nothing follows.
  bool begin_next_member() {
    for (;;) {
      if (used == filled && !refill()) return false;
      if (buffer[used] != 0) break;
      ++used;
    }
    FULMEN_CHECK(inflateReset(&inflater->stream()) == Z_OK, "zlib does not start again");
    between_frames = false;
    return true;
  }

  std::size_t read_gzip(std::span<char> out) {
    z_stream& stream = inflater->stream();
    std::size_t done = 0;
    while (done < out.size()) {
      if (between_frames && !begin_next_member()) break;
      if (used == filled && !refill()) fail_truncated();
      stream.next_in = buffer.data() + used;
      stream.avail_in = static_cast<uInt>(filled - used);
      stream.next_out = reinterpret_cast<Bytef*>(out.data() + done);
      const std::size_t room = std::min(out.size() - done, std::size_t{1} << 30);
      stream.avail_out = static_cast<uInt>(room);
      const int result = inflate(&stream, Z_NO_FLUSH);
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) fail_damaged(stream.msg);
      used = filled - stream.avail_in;
      done += room - stream.avail_out;
      between_frames = result == Z_STREAM_END;
    }
    return done;
  }

  std::size_t read_zstd(std::span<char> out) {
    ZSTD_outBuffer target{out.data(), out.size(), 0};
    while (target.pos < target.size) {
      // At the end of the file the decompressor may still hold output.
      if (used == filled && !refill() && between_frames) break;
      ZSTD_inBuffer source{buffer.data(), filled, used};
      const std::size_t before = target.pos;
      const std::size_t result = ZSTD_decompressStream(decompressor.get(), &target, &source);
      if (ZSTD_isError(result) != 0U) fail_zstd(result);
      const bool moved = target.pos > before || source.pos > used;
      used = source.pos;
      between_frames = result == 0;
      if (!moved && used == filled && target.pos < target.size && at_end) fail_truncated();
    }
    return target.pos;
  }
};

InputStream::InputStream(const std::filesystem::path& path) : state_(std::make_unique<State>()) {
  state_->path = path;
  state_->open();
}
InputStream::~InputStream() = default;
InputStream::InputStream(InputStream&&) noexcept = default;

std::size_t InputStream::read(std::span<char> out) {
  switch (state_->compression) {
    case Compression::none: return state_->read_plain(out);
    case Compression::gzip: return state_->read_gzip(out);
    case Compression::zstd: return state_->read_zstd(out);
  }
  throw InternalError("an unknown compression");
}

std::int64_t InputStream::file_bytes_read() const { return state_->file_bytes; }

Compression InputStream::compression() const { return state_->compression; }

}  // namespace fulmen
