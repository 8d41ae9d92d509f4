// Reading safetensors: a header checked to the last byte, then hyperslabs by pread.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include <fmt/format.h>

#include "framework/document_limits.h"
#include "framework/error.h"
#include "framework/json_document.h"
#include "framework/outside_files.h"
#include "framework/outside_numbers.h"
#include "framework/text.h"
#include "infer/safetensors.h"
#include "infer/safetensors_elements.h"

namespace fulmen {

namespace fs = std::filesystem;

namespace {

using nlohmann::json;

constexpr std::uint64_t longest_header = 100'000'000;  // the format's own limit
constexpr std::size_t buffer_bytes = std::size_t{1} << 20;
constexpr const char* get_anew = "the file is damaged or of another kind; get it anew";

struct Place {
  SafetensorsTensor tensor;
  SafetensorsElement element;
  std::uint64_t begin = 0, end = 0;  // in the part after the header
};

[[noreturn]] void refuse(const std::string& where, const std::string& what) { throw UserError(where, what, get_anew); }

class InputFile {
 public:
  explicit InputFile(const fs::path& path) : path_(path), descriptor_(open_regular_file(path)) {
    struct stat status {};
    if (::fstat(descriptor_.get(), &status) != 0) throw_system_error("cannot tell the size of " + path.string());
    bytes_ = static_cast<std::uint64_t>(status.st_size);
  }

  std::uint64_t bytes() const { return bytes_; }
  const fs::path& path() const { return path_; }

  void read(std::uint64_t at, void* data, std::size_t bytes) const {
    auto* target = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t got = ::pread(descriptor_.get(), target, bytes, static_cast<off_t>(at));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) {
        throw UserError(path_.string(), "cannot be read: " + std::generic_category().message(errno), "check the disk");
      }
      if (got == 0) refuse(path_.string(), "ends too early: it was cut short");
      target += got;
      at += static_cast<std::uint64_t>(got);
      bytes -= static_cast<std::size_t>(got);
    }
  }

 private:
  fs::path path_;
  Descriptor descriptor_;
  std::uint64_t bytes_ = 0;
};

std::string read_header(const InputFile& file) {
  const std::string where = file.path().string();
  std::uint64_t length = 0;
  if (file.bytes() < sizeof(length)) {
    refuse(where, fmt::format("has {} bytes, too few for a safetensors file", file.bytes()));
  }
  file.read(0, &length, sizeof(length));
  if (length > longest_header || length < 2) {
    refuse(where, fmt::format("says that its header has {} bytes: it is no safetensors file", length));
  }
  if (length > file.bytes() - sizeof(length)) {
    refuse(where,
           fmt::format("says that its header has {} bytes, but has {} in all: it was cut short", length, file.bytes()));
  }
  if (length > longest_document) {
    refuse(where, fmt::format("has a header of {} bytes, at most {} are read", length, longest_document));
  }
  std::string header(length, '\0');
  file.read(sizeof(length), header.data(), header.size());
  if (header.front() != '{') refuse(where, "has a header that does not begin with '{': it is no safetensors file");
  return header;
}

std::map<std::string, std::string> parse_metadata(const json& node, const std::string& where) {
  if (!node.is_object()) refuse(where, "its __metadata__ is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : node.items()) {
    if (!value.is_string()) refuse(where, fmt::format("its __metadata__ holds '{}', which is not text", key));
    metadata[key] = value.get<std::string>();
  }
  return metadata;
}

std::uint64_t natural(const json& node, const std::string& where, const char* what) {
  if (!node.is_number_unsigned()) {
    refuse(where, fmt::format("its {} holds {}, not a whole number from 0", what, node.dump()));
  }
  return node.get<std::uint64_t>();
}

Shape parse_shape(const json& node, const std::string& where) {
  if (!node.is_array()) refuse(where, "has no shape");
  Shape shape;
  for (const json& extent : node) {
    const std::uint64_t value = natural(extent, where, "shape");
    if (value > static_cast<std::uint64_t>(INT64_MAX)) {
      refuse(where, fmt::format("its shape holds {}, which is too large", value));
    }
    shape.push_back(static_cast<std::int64_t>(value));
  }
  return shape;
}

std::uint64_t bytes_of(const Shape& shape, int bits, const std::string& where) {
  std::uint64_t total = static_cast<std::uint64_t>(bits);
  if (!is_countable(shape)) refuse(where, fmt::format("has the shape {}, which is too large", to_string(shape)));
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(total, static_cast<std::uint64_t>(extent), &total)) {
      refuse(where, fmt::format("has the shape {}, which is too large", to_string(shape)));
    }
  }
  if (total % 8 != 0) refuse(where, fmt::format("its {} bits make no whole bytes", total));
  return total / 8;
}

Place parse_tensor(const std::string& name, const json& node, std::uint64_t available, const std::string& file) {
  const std::string where = fmt::format("{}: tensor {}", file, name);
  if (!node.is_object() || !node.contains("dtype") || !node.contains("shape") || !node.contains("data_offsets")) {
    refuse(where, "is not described by dtype, shape and data_offsets");
  }
  Place place;
  if (!node["dtype"].is_string()) refuse(where, "its dtype is not text");
  place.tensor = {name, node["dtype"].get<std::string>(), parse_shape(node["shape"], where)};
  const auto element = find_safetensors_element(place.tensor.dtype);
  if (!element) {
    refuse(where, fmt::format("has the unknown dtype '{}'; known are {}", place.tensor.dtype, safetensors_words()));
  }
  place.element = *element;
  const json& offsets = node["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2) refuse(where, "its data_offsets are not two numbers");
  place.begin = natural(offsets[0], where, "data_offsets");
  place.end = natural(offsets[1], where, "data_offsets");
  if (place.begin > place.end || place.end > available) {
    refuse(where, fmt::format(
                      "lies at bytes {} to {}, but there are {} after the header: the file was cut short or is damaged",
                      place.begin, place.end, available));
  }
  const std::uint64_t needed = bytes_of(place.tensor.shape, element->bits, where);
  if (place.end - place.begin != needed) {
    refuse(where, fmt::format("has {} bytes, but {} of shape {} needs {}", place.end - place.begin, place.tensor.dtype,
                              to_string(place.tensor.shape), needed));
  }
  return place;
}

// The format allows neither overlap nor gap: a file has one meaning, and hides nothing.
void check_layout(const std::map<std::string, Place>& places, std::uint64_t available, const std::string& where) {
  std::vector<const Place*> order;
  for (const auto& [name, place] : places) order.push_back(&place);
  std::sort(order.begin(), order.end(), [](const Place* a, const Place* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  std::uint64_t end = 0;
  const Place* previous = nullptr;
  for (const Place* place : order) {
    if (place->begin < end) {
      refuse(where, fmt::format("the tensors {} and {} overlap", previous->tensor.name, place->tensor.name));
    }
    if (place->begin > end) {
      refuse(where, fmt::format("bytes {} to {} after the header belong to no tensor", end, place->begin));
    }
    end = place->end;
    previous = place;
  }
  if (end != available) {
    refuse(where, fmt::format("bytes {} to {} after the header belong to no tensor", end, available));
  }
}

}  // namespace

struct SafetensorsReader::State {
  explicit State(const fs::path& path) : file(path) {
    const std::string where = path.string();
    const std::string header = read_header(file);
    data_begin = sizeof(std::uint64_t) + header.size();
    const std::uint64_t available = file.bytes() - data_begin;
    const json document = parse_json_object(header, where);
    for (const auto& [name, node] : document.items()) {
      if (name == "__metadata__") {
        metadata = parse_metadata(node, where);
      } else {
        places.emplace(name, parse_tensor(name, node, available, where));
      }
    }
    check_layout(places, available, where);
  }

  const Place& place(const std::string& name) const {
    const auto found = places.find(name);
    if (found != places.end()) return found->second;
    std::vector<std::string> names;
    for (const auto& [other, place] : places) names.push_back(other);
    const std::string nearest = nearest_name(name, names);
    throw UserError(file.path().string(), "has no tensor " + name,
                    nearest.empty() ? "check that it is a file of this model"
                                    : fmt::format("check that it is a file of this model; it has {}", nearest));
  }

  InputFile file;
  std::uint64_t data_begin = 0;
  std::map<std::string, std::string> metadata;
  std::map<std::string, Place> places;
};

SafetensorsReader::SafetensorsReader(const fs::path& path) : state_(std::make_unique<State>(path)) {}
SafetensorsReader::~SafetensorsReader() = default;
SafetensorsReader::SafetensorsReader(SafetensorsReader&&) noexcept = default;

const fs::path& SafetensorsReader::path() const { return state_->file.path(); }

const std::map<std::string, std::string>& SafetensorsReader::metadata() const { return state_->metadata; }

std::vector<std::string> SafetensorsReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, place] : state_->places) names.push_back(name);
  return names;
}

bool SafetensorsReader::has(const std::string& name) const { return state_->places.contains(name); }

const SafetensorsTensor& SafetensorsReader::tensor(const std::string& name) const { return state_->place(name).tensor; }

void SafetensorsReader::read(const std::string& name, const std::vector<std::int64_t>& offset,
                             const Tensor& memory) const {
  const Place& place = state_->place(name);
  const std::string where = fmt::format("{}: tensor {}", state_->file.path().string(), name);
  check_hyperslab(place.tensor.shape, offset, memory, where);
  if (!safetensors_converts(place.element, memory.dtype())) {
    throw UserError(where,
                    fmt::format("holds {}, which cannot be read as {}", place.tensor.dtype, name_of(memory.dtype())),
                    "store it as F32, F16, BF16 or F64");
  }
  const DType stored = *place.element.dtype;
  const std::size_t stored_size = size_of(stored), memory_size = size_of(memory.dtype());
  const std::uint64_t start = state_->data_begin + place.begin;
  const auto most = static_cast<std::int64_t>(buffer_bytes / stored_size);
  std::vector<std::byte> buffer(
      std::min<std::size_t>(buffer_bytes, static_cast<std::size_t>(memory.elements()) * stored_size));
  for_each_run(place.tensor.shape, offset, memory, [&](const ElementRun& run) {
    for (std::int64_t done = 0; done < run.count; done += most) {
      const std::int64_t count = std::min(most, run.count - done);
      state_->file.read(start + static_cast<std::uint64_t>(run.first + done) * stored_size, buffer.data(),
                        static_cast<std::size_t>(count) * stored_size);
      decode_elements(stored, buffer.data(), memory.dtype(),
                      run.memory + done * run.stride * static_cast<std::int64_t>(memory_size), run.stride, count);
    }
  });
}

}  // namespace fulmen
