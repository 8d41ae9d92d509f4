// The elementwise kernels of plain linear attention. They go from strided tensors to head-major tiles in the
// accumulation dtype, with activations, LRPE and decay, and from tiles back.
#pragma once

#include "kernels/linear_attention.h"

namespace fulmen::cuda {

// Tokens of a tile. Tiles lie at multiples of it whatever the documents, which masks tell apart.
inline constexpr int tile_tokens = 64;

// A group of sequences, a sequence being a head of a row, cut into tiles. A tile's matrices have tile_tokens rows;
// those past the end of the row are zero in whatever is loaded and ignored in whatever is stored.
struct AttentionTiles {
  std::int64_t batch, length, heads;
  int key_width, state_width, value_width;
  std::int64_t chunks;                     // tiles of a sequence
  std::int64_t first_sequence, sequences;  // row * heads + head
  const double* slope;                     // [heads]
  const std::int64_t* document_begins;     // [batch * length], as document_begins writes it

  std::int64_t count() const { return sequences * chunks; }
};

// begins [batch * length] = the position in its row of the first token of each token's document. Null segments: 0.
void document_begins(const Execution& execution, const Tensor& segments, std::int64_t batch, std::int64_t length,
                     std::int64_t* begins);

// Features of queries and keys [tiles, tile_tokens, state_width]. A is the accumulation type of the inputs' dtype.
template <class A>
void load_query_key(const Execution& execution, const AttentionTiles& tiles, const LinearAttentionInputs& inputs,
                    A* query, A* key);

// Weights of a tile's tokens.
enum class TokenWeight : std::uint8_t {
  from_start,  // of the state before the tile in what the token reads: decay^(t + 1), 0 past the start of a document
  to_end,      // of the token in the state after the tile: decay^(last - t), 0 before the document of the last token
};

// rows [tiles, tile_tokens, value_width] = activation(x), weighted = the same times each token's weight.
template <class A>
void load_value(const Execution& execution, const AttentionTiles& tiles, const Tensor& x, Activation activation,
                TokenWeight weight, A* rows, A* weighted);

// output = from_start * from_state + from_tile, both [tiles, tile_tokens, value_width]; and its square sums.
template <class A>
void store_output(const Execution& execution, const AttentionTiles& tiles, const A* from_state, const A* from_tile,
                  const LinearAttentionOutputs& outputs);

// d_value = (to_end * from_state + from_tile) * activation'(value).
template <class A>
void store_value_gradient(const Execution& execution, const AttentionTiles& tiles, const A* from_state,
                          const A* from_tile, const LinearAttentionInputs& inputs, const Tensor& d_value);

// Back through LRPE and the activation, from gradients of the features to d_query and d_key. theta_shares
// [batch * heads, chunks, key_width], null without theta: each tile's share of d_theta.
template <class A>
void store_query_key_gradients(const Execution& execution, const AttentionTiles& tiles, const A* d_query_features,
                               const A* d_key_features, const LinearAttentionInputs& inputs, const Tensor& d_query,
                               const Tensor& d_key, double* theta_shares);

// d_theta [heads, key_width] += the shares of all rows and chunks, in a fixed order.
void add_theta_gradients(const Execution& execution, const AttentionTiles& tiles, const double* theta_shares,
                         double* d_theta);

}  // namespace fulmen::cuda
