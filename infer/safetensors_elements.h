// Shared by reading and writing safetensors: the element types, their conversions, and the runs of a hyperslab.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "framework/tensor.h"
#include "infer/safetensors.h"

namespace fulmen {

struct SafetensorsElement {
  int bits = 0;
  std::optional<DType> dtype;  // the same type here, if there is one
};

// Nothing for a word that the format does not know.
std::optional<SafetensorsElement> find_safetensors_element(const std::string& word);
std::string safetensors_words();  // all of them, for messages

// The element type of a tensor to be written, and the bytes of its elements. InternalError for a type that has no match
// here.
DType safetensors_stored_dtype(const SafetensorsTensor& tensor);
std::int64_t safetensors_bytes(const SafetensorsTensor& tensor);

// Whether elements of `stored` can be read into, and written from, memory of `memory`.
bool safetensors_converts(const SafetensorsElement& stored, DType memory);

// Elements at `memory`, `stride` of them apart, from or to `count` stored elements, close together.
void decode_elements(DType stored, const std::byte* bytes, DType dtype, void* memory, std::int64_t stride,
                     std::int64_t count);
void encode_elements(DType stored, std::byte* bytes, DType dtype, const void* memory, std::int64_t stride,
                     std::int64_t count);

// A run of elements that lie close together in the file, and at one distance in memory.
struct ElementRun {
  std::int64_t first = 0;  // index in the stored tensor
  std::int64_t count = 0;
  std::byte* memory = nullptr;
  std::int64_t stride = 1;  // in elements
};

// That the hyperslab lies inside and `memory` on the host (InternalError).
void check_hyperslab(const Shape& stored, const std::vector<std::int64_t>& offset, const Tensor& memory,
                     const std::string& where);

// Calls f for the runs that make up the hyperslab of `memory`'s shape at `offset` of a tensor of shape `stored`.
void for_each_run(const Shape& stored, const std::vector<std::int64_t>& offset, const Tensor& memory,
                  const std::function<void(const ElementRun&)>& f);

}  // namespace fulmen
