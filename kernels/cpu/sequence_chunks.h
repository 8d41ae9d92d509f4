// The cutting of rows into chunks, and the memory of a chunk's work, for kernels over sequences in chunk form.
#pragma once

#include <cstdint>
#include <vector>

#include "framework/tensor.h"

namespace fulmen::cpu {

// Tokens of a chunk. The work per token grows as 1.25 chunk + 2 width; 64 keeps a chunk's matrices in the cache.
inline constexpr std::int64_t chunk_tokens = 64;

// Consecutive tokens of one document in one row.
struct Chunk {
  std::int64_t begin;   // position in the row
  std::int64_t length;  // 1 to chunk_tokens
  bool starts_segment;
  bool ends_segment;
};

// The chunks of every row. A chunk never crosses the end of a segment. segments: as in LinearAttentionInputs, or null.
std::vector<std::vector<Chunk>> cut_into_chunks(const Tensor& segments, std::int64_t batch, std::int64_t length);

// Per (batch, head) slices of strided tensors [batch, length, heads, width].
template <class T>
struct HeadRows {
  HeadRows() = default;
  HeadRows(const Tensor& x, std::int64_t row, std::int64_t head)
      : data(x.as<T>() + row * x.stride(0) + head * x.stride(2)), stride(x.stride(1)) {}
  T* at(std::int64_t position) const { return data + position * stride; }

  T* data = nullptr;
  std::int64_t stride = 0;
};

// Hands out parts of a block of scratch memory, each aligned to a cache line.
template <class T>
class Carver {
 public:
  explicit Carver(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}
  template <class U = T>
  U* take(std::int64_t elements) {
    void* part = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += (elements * static_cast<std::int64_t>(sizeof(U)) + 63) / 64 * 64;
    return static_cast<U*>(part);
  }
  std::int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  std::int64_t bytes_ = 0;
};

}  // namespace fulmen::cpu
