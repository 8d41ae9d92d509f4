// Writing safetensors: the header and the file's whole size first, then hyperslabs by pwrite, then the file's name.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/json_document.h"
#include "framework/text.h"
#include "infer/safetensors.h"
#include "infer/safetensors_elements.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

constexpr std::size_t buffer_bytes = std::size_t{1} << 20;

struct Place {
  Shape shape;
  DType stored = DType::fp32;
  std::uint64_t begin = 0;   // in the file
  std::int64_t written = 0;  // elements
};

[[noreturn]] void throw_unwritable(const fs::path& path, int code) {
  throw UserError(path.string(), "cannot be written: " + std::generic_category().message(code),
                  "check the folder's permissions and free space, or choose another place");
}

// Under a temporary name until it is complete.
class OutputFile {
 public:
  explicit OutputFile(const fs::path& path) : path_(path), temporary_(path) {
    temporary_ += ".partial";
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw_unwritable(path_, errno);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary_.c_str());
  }

  const fs::path& path() const { return path_; }

  void reserve(std::uint64_t bytes) {
    const int code = ::posix_fallocate(descriptor_, 0, static_cast<off_t>(bytes));
    if (code == 0 || code == EOPNOTSUPP || code == EINVAL) return;  // some file systems cannot reserve
    if (code != ENOSPC) throw_unwritable(path_, code);
    throw UserError(path_.string(),
                    fmt::format("cannot be written: it takes {}, and the disk has not as much left",
                                human_bytes(static_cast<double>(bytes))),
                    "free some space there, or choose another place");
  }

  void write(std::uint64_t at, const void* data, std::size_t bytes) {
    const auto* source = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t written = ::pwrite(descriptor_, source, bytes, static_cast<off_t>(at));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw_unwritable(path_, errno);
      source += written;
      at += static_cast<std::uint64_t>(written);
      bytes -= static_cast<std::size_t>(written);
    }
  }

  void finish() {
    if (::fsync(descriptor_) != 0) throw_unwritable(path_, errno);
    if (::close(std::exchange(descriptor_, -1)) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
      const int code = errno;
      ::unlink(temporary_.c_str());
      throw_unwritable(path_, code);
    }
    flush_to_disk(path_.has_parent_path() ? path_.parent_path() : fs::path("."));
  }

 private:
  fs::path path_, temporary_;
  int descriptor_ = -1;
};

std::string dump(const nlohmann::ordered_json& header) {
  try {
    return header.dump();
  } catch (const nlohmann::json::exception& error) {
    throw InternalError(fmt::format("a safetensors header that is no text: {}", error.what()));
  }
}

}  // namespace

struct SafetensorsWriter::State {
  State(const fs::path& path, std::vector<SafetensorsTensor> tensors,
        const std::map<std::string, std::string>& metadata)
      : file(path) {
    // Wide elements first: each tensor is then aligned to its elements.
    std::stable_sort(tensors.begin(), tensors.end(), [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
      return size_of(safetensors_stored_dtype(a)) > size_of(safetensors_stored_dtype(b));
    });
    nlohmann::ordered_json header = nlohmann::ordered_json::object();
    if (!metadata.empty()) header["__metadata__"] = metadata;
    std::uint64_t end = 0;
    for (const SafetensorsTensor& tensor : tensors) {
      const DType dtype = safetensors_stored_dtype(tensor);
      FULMEN_CHECK(tensor.name != "__metadata__", "{} cannot name a tensor", tensor.name);
      FULMEN_CHECK(places.emplace(tensor.name, Place{tensor.shape, dtype, end, 0}).second, "{} is declared twice",
                   tensor.name);
      const std::uint64_t begin = end;
      end += static_cast<std::uint64_t>(elements_of(tensor.shape)) * size_of(dtype);
      header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, end}}};
    }
    std::string text = dump(header);
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = text.size();
    for (auto& [name, place] : places) place.begin += sizeof(length) + length;
    file.reserve(sizeof(length) + length + end);
    file.write(0, &length, sizeof(length));
    file.write(sizeof(length), text.data(), text.size());
  }

  OutputFile file;
  std::map<std::string, Place> places;
};

SafetensorsWriter::SafetensorsWriter(const fs::path& path, const std::vector<SafetensorsTensor>& tensors,
                                     const std::map<std::string, std::string>& metadata)
    : state_(std::make_unique<State>(path, tensors, metadata)) {}
SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;

void SafetensorsWriter::write(const std::string& name, const std::vector<std::int64_t>& offset, const Tensor& memory) {
  const auto found = state_->places.find(name);
  FULMEN_CHECK(found != state_->places.end(), "{} was not declared", name);
  Place& place = found->second;
  check_hyperslab(place.shape, offset, memory, name);
  const SafetensorsElement element{static_cast<int>(8 * size_of(place.stored)), place.stored};
  FULMEN_CHECK(safetensors_converts(element, memory.dtype()), "{}: {} written as {}", name, name_of(memory.dtype()),
               name_of(place.stored));
  const std::size_t stored_size = size_of(place.stored), memory_size = size_of(memory.dtype());
  const auto most = static_cast<std::int64_t>(buffer_bytes / stored_size);
  std::vector<std::byte> buffer(
      std::min<std::size_t>(buffer_bytes, static_cast<std::size_t>(memory.elements()) * stored_size));
  for_each_run(place.shape, offset, memory, [&](const ElementRun& run) {
    for (std::int64_t done = 0; done < run.count; done += most) {
      const std::int64_t count = std::min(most, run.count - done);
      encode_elements(place.stored, buffer.data(), memory.dtype(),
                      run.memory + done * run.stride * static_cast<std::int64_t>(memory_size), run.stride, count);
      state_->file.write(place.begin + static_cast<std::uint64_t>(run.first + done) * stored_size, buffer.data(),
                         static_cast<std::size_t>(count) * stored_size);
    }
  });
  place.written += memory.elements();
}

void SafetensorsWriter::close() {
  for (const auto& [name, place] : state_->places) {
    FULMEN_CHECK(place.written == elements_of(place.shape), "{}: {} elements of {} were written", name, place.written,
                 to_string(place.shape));
  }
  state_->file.finish();
}

}  // namespace fulmen
