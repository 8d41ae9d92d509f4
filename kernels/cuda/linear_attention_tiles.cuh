// Where a tile of plain linear attention lies, and what its tokens weigh, as the kernels see it.
#pragma once

#include "kernels/cuda/linear_attention_arithmetic.cuh"
#include "kernels/cuda/linear_attention_features.h"

namespace fulmen::cuda {

struct TilePlace {
  std::int64_t row, head;
  std::int64_t first;  // position of its first token in the row
  int tokens;          // 1 to tile_tokens

  __device__ void move_to(const AttentionTiles& tiles, std::int64_t chunk) {
    first = chunk * tile_tokens;
    const std::int64_t rest = tiles.length - first;
    tokens = static_cast<int>(rest < tile_tokens ? rest : tile_tokens);
  }
};

// Divides in 32 bits, which is several times faster: there are fewer tiles than a grid has blocks.
__device__ inline TilePlace place_of(const AttentionTiles& tiles, unsigned tile) {
  const auto chunks = static_cast<unsigned>(tiles.chunks), heads = static_cast<unsigned>(tiles.heads);
  const unsigned sequence = static_cast<unsigned>(tiles.first_sequence) + tile / chunks;
  TilePlace place{sequence / heads, sequence % heads, 0, 0};
  place.move_to(tiles, tile % chunks);
  return place;
}

__device__ inline std::int64_t document_begin(const AttentionTiles& tiles, const TilePlace& place, int token) {
  return tiles.document_begins[place.row * tiles.length + place.first + token];
}

// Whether the state before the tile reaches the token: its document began before. The state before a row's first tile
// is the initial state, which the first document takes up.
__device__ inline bool reached_by_state(const AttentionTiles& tiles, const TilePlace& place, int token) {
  const std::int64_t begin = document_begin(tiles, place, token);
  return begin == 0 || begin < place.first;
}

}  // namespace fulmen::cuda
