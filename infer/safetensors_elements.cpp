// Element types and conversions between them, and the walk over a hyperslab.
#include "infer/safetensors_elements.h"

#include <bit>
#include <cstring>
#include <map>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/text.h"
#include "infer/half_precision.h"

namespace fulmen {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

const std::map<std::string, SafetensorsElement>& elements() {
  static const std::map<std::string, SafetensorsElement> table{{"F64", {64, DType::fp64}},
                                                               {"F32", {32, DType::fp32}},
                                                               {"F16", {16, DType::fp16}},
                                                               {"BF16", {16, DType::bf16}},
                                                               {"I64", {64, DType::int64}},
                                                               {"I32", {32, DType::int32}},
                                                               {"U64", {64, DType::uint64}},
                                                               {"U32", {32, DType::uint32}},
                                                               {"U16", {16, DType::uint16}},
                                                               {"U8", {8, DType::uint8}},
                                                               {"I16", {16, {}}},
                                                               {"I8", {8, {}}},
                                                               {"BOOL", {8, {}}},
                                                               {"F8_E4M3", {8, {}}},
                                                               {"F8_E5M2", {8, {}}},
                                                               {"F8_E8M0", {8, {}}},
                                                               {"F6_E2M3", {6, {}}},
                                                               {"F6_E3M2", {6, {}}},
                                                               {"F4", {4, {}}},
                                                               {"C64", {64, {}}}};
  return table;
}

template <class Stored, class Memory, class Convert>
void decode(const std::byte* bytes, Memory* memory, std::int64_t stride, std::int64_t count, Convert convert) {
  for (std::int64_t i = 0; i < count; ++i) {
    Stored value;  // the file's elements may lie at odd addresses
    std::memcpy(&value, bytes + static_cast<std::size_t>(i) * sizeof(Stored), sizeof(Stored));
    memory[i * stride] = static_cast<Memory>(convert(value));
  }
}

template <class Stored, class Memory, class Convert>
void encode(std::byte* bytes, const Memory* memory, std::int64_t stride, std::int64_t count, Convert convert) {
  for (std::int64_t i = 0; i < count; ++i) {
    const auto value = static_cast<Stored>(convert(memory[i * stride]));
    std::memcpy(bytes + static_cast<std::size_t>(i) * sizeof(Stored), &value, sizeof(Stored));
  }
}

constexpr auto unchanged = [](auto x) { return x; };

template <class Memory>
void decode_to(DType stored, const std::byte* bytes, Memory* memory, std::int64_t stride, std::int64_t count) {
  switch (stored) {
    case DType::fp64: return decode<double>(bytes, memory, stride, count, unchanged);
    case DType::fp32: return decode<float>(bytes, memory, stride, count, unchanged);
    case DType::bf16: return decode<std::uint16_t>(bytes, memory, stride, count, bf16_to_float);
    case DType::fp16: return decode<std::uint16_t>(bytes, memory, stride, count, fp16_to_float);
    default: throw InternalError(fmt::format("no conversion from {}", name_of(stored)));
  }
}

template <class Memory>
void encode_from(DType stored, std::byte* bytes, const Memory* memory, std::int64_t stride, std::int64_t count) {
  switch (stored) {
    case DType::fp64: return encode<double>(bytes, memory, stride, count, unchanged);
    case DType::fp32: return encode<float>(bytes, memory, stride, count, unchanged);
    case DType::bf16: return encode<std::uint16_t>(bytes, memory, stride, count, [](Memory x) { return to_bf16(x); });
    case DType::fp16: return encode<std::uint16_t>(bytes, memory, stride, count, [](Memory x) { return to_fp16(x); });
    default: throw InternalError(fmt::format("no conversion to {}", name_of(stored)));
  }
}

bool is_computed_with(DType dtype) { return dtype == DType::fp32 || dtype == DType::fp64; }

}  // namespace

std::optional<SafetensorsElement> find_safetensors_element(const std::string& word) {
  const auto found = elements().find(word);
  if (found == elements().end()) return std::nullopt;
  return found->second;
}

std::string safetensors_words() {
  std::vector<std::string> words;
  for (const auto& [word, element] : elements()) words.push_back(word);
  return join(words, ", ");
}

std::string safetensors_dtype(DType dtype) {
  for (const auto& [word, element] : elements()) {
    if (element.dtype == dtype) return word;
  }
  throw InternalError(fmt::format("safetensors has no word for {}", name_of(dtype)));
}

DType safetensors_stored_dtype(const SafetensorsTensor& tensor) {
  const auto element = find_safetensors_element(tensor.dtype);
  FULMEN_CHECK(element && element->dtype, "{}: {} is not written", tensor.name, tensor.dtype);
  return *element->dtype;
}

std::int64_t safetensors_bytes(const SafetensorsTensor& tensor) {
  return elements_of(tensor.shape) * static_cast<std::int64_t>(size_of(safetensors_stored_dtype(tensor)));
}

bool safetensors_converts(const SafetensorsElement& stored, DType memory) {
  if (!stored.dtype) return false;
  return stored.dtype == memory || (is_floating(*stored.dtype) && is_computed_with(memory));
}

void decode_elements(DType stored, const std::byte* bytes, DType dtype, void* memory, std::int64_t stride,
                     std::int64_t count) {
  if (is_computed_with(dtype)) {
    return dispatch_fp32_fp64(dtype,
                              [&]<class T>(T) { decode_to(stored, bytes, static_cast<T*>(memory), stride, count); });
  }
  FULMEN_CHECK(stored == dtype, "{} read as {}", name_of(stored), name_of(dtype));
  const std::size_t size = size_of(dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(static_cast<std::byte*>(memory) + i * stride * static_cast<std::int64_t>(size),
                bytes + static_cast<std::size_t>(i) * size, size);
  }
}

void encode_elements(DType stored, std::byte* bytes, DType dtype, const void* memory, std::int64_t stride,
                     std::int64_t count) {
  if (is_computed_with(dtype)) {
    return dispatch_fp32_fp64(
        dtype, [&]<class T>(T) { encode_from(stored, bytes, static_cast<const T*>(memory), stride, count); });
  }
  FULMEN_CHECK(stored == dtype, "{} written as {}", name_of(dtype), name_of(stored));
  const std::size_t size = size_of(dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    std::memcpy(bytes + static_cast<std::size_t>(i) * size,
                static_cast<const std::byte*>(memory) + i * stride * static_cast<std::int64_t>(size), size);
  }
}

void check_hyperslab(const Shape& stored, const std::vector<std::int64_t>& offset, const Tensor& memory,
                     const std::string& where) {
  FULMEN_CHECK(memory.device() == Device::cpu(), "{}: memory on a GPU", where);
  bool inside = static_cast<std::size_t>(memory.rank()) == stored.size() && offset.size() == stored.size();
  for (std::size_t d = 0; inside && d < stored.size(); ++d) {
    inside = offset[d] >= 0 && offset[d] + memory.size(static_cast<int>(d)) <= stored[d];
  }
  FULMEN_CHECK(inside, "{}: {} at {} in {}", where, memory.describe(), to_string(offset), to_string(stored));
}

void for_each_run(const Shape& stored, const std::vector<std::int64_t>& offset, const Tensor& memory,
                  const std::function<void(const ElementRun&)>& f) {
  if (memory.elements() == 0) return;
  const int rank = memory.rank();
  // Trailing dimensions that are whole in the file and close together in memory make one run with the dimension before
  // them.
  int outer = rank;  // dimensions walked one by one
  std::int64_t count = 1;
  const std::int64_t stride = rank > 0 ? memory.stride(-1) : 1;
  while (outer > 0) {
    const int d = outer - 1;
    const bool adjoins = outer == rank || (memory.size(outer) == stored[static_cast<std::size_t>(outer)] &&
                                           memory.stride(d) == stride * count);
    if (!adjoins) break;
    count *= memory.size(d);
    outer = d;
  }
  std::vector<std::int64_t> place(static_cast<std::size_t>(outer), 0);
  for (;;) {
    std::int64_t first = 0, distance = 0;
    for (int d = 0; d < rank; ++d) {
      const auto i = static_cast<std::size_t>(d);
      first = first * stored[i] + offset[i] + (d < outer ? place[i] : 0);
      if (d < outer) distance += place[i] * memory.stride(d);
    }
    auto* start =
        static_cast<std::byte*>(memory.data()) + distance * static_cast<std::int64_t>(size_of(memory.dtype()));
    f({first, count, start, stride});
    int d = outer - 1;
    while (d >= 0 && ++place[static_cast<std::size_t>(d)] == memory.size(d)) place[static_cast<std::size_t>(d--)] = 0;
    if (d < 0) return;
  }
}

}  // namespace fulmen
