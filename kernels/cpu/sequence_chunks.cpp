// Chunks of rows and of documents.
#include "kernels/cpu/sequence_chunks.h"

#include <algorithm>

namespace fulmen::cpu {

namespace {

void cut_segment(std::int64_t begin, std::int64_t end, std::vector<Chunk>& chunks) {
  for (std::int64_t at = begin; at < end; at += chunk_tokens)
    chunks.push_back({at, std::min(chunk_tokens, end - at), at == begin, at + chunk_tokens >= end});
}

}  // namespace

std::vector<std::vector<Chunk>> cut_into_chunks(const Tensor& segments, std::int64_t batch, std::int64_t length) {
  std::vector<std::vector<Chunk>> rows(batch);
  if (segments.is_null()) {
    for (auto& chunks : rows) cut_segment(0, length, chunks);
    return rows;
  }
  const std::int64_t* const offsets = segments.as<std::int64_t>();
  for (std::int64_t s = 0; s + 1 < segments.size(0); ++s) {
    const std::int64_t row = offsets[s] / length;
    cut_segment(offsets[s] - row * length, offsets[s + 1] - row * length, rows[row]);
  }
  return rows;
}

}  // namespace fulmen::cpu
