// A chunk of a gated recurrence: what its tokens write to the state, what they read, and the state behind it. Shared by
// the forward pass, the backward pass, which computes the states again, and the summaries of slices.
#pragma once

#include "kernels/cpu/chunk_decay.h"
#include "kernels/cpu/sequence_chunks.h"
#include "kernels/gated_recurrence.h"

namespace fulmen::cpu {

struct GatedShape {
  // transition_columns: further columns of the state, in which tokens write nothing.
  explicit GatedShape(const GatedRecurrenceInputs& inputs, std::int64_t transition_columns = 0);

  std::int64_t batch, length, key_heads, heads, key_width;
  std::int64_t value_width, columns;       // of the values; with the transition's
  std::int64_t key_stride, column_stride;  // rows of the chunk's matrices: whole vectors
  bool per_channel, delta, bonus;

  std::int64_t group() const { return heads / key_heads; }
  std::int64_t state_elements() const { return key_width * column_stride; }
};

// How many threads share out the heads of keys of all rows: one where they would wait longer than they work.
int gated_recurrence_threads(const GatedShape& shape);

// The work of a thread on one head of values of one row. All matrices in the accumulation dtype, rows of tokens.
template <class T>
class GatedChunk {
 public:
  GatedChunk(const GatedShape& shape, Carver<T>& carver);

  // Which head of values, of which row.
  void select(const GatedRecurrenceInputs& inputs, std::int64_t row, std::int64_t head);
  // Keys, decays and rates of a chunk; its values; its queries, scaled.
  void load_keys(const Chunk& chunk);
  void load_values(const Chunk& chunk);
  void load_queries(const Chunk& chunk);

  // Computes `written` from the state [key width, columns] in front of the chunk.
  void write(const T* state);
  // The state behind the chunk, in place.
  void advance(T* state);
  // Scores of the queries; then their reading [length, columns].
  void score();
  void read(const T* state, T* output) const;

  // c = (add_to_c: c +) a b, of `rows` rows.
  void product(std::int64_t rows, std::int64_t depth, const T* a, std::int64_t a_row_stride,
               std::int64_t a_depth_stride, const T* b, std::int64_t columns, T* c, bool add_to_c) const;

  const GatedShape& shape;
  ChunkDecay<T> decay;
  std::int64_t row = 0, head = 0, length = 0;
  T *query, *key, *reading, *ending;  // [length, key width]; queries from the start, keys to the end
  T* starting;                        // keys from the start, with the delta rule
  T *value, *residual, *written;      // [length, columns]; without the delta rule `written` is `value`
  T *scores, *pairs;                  // [length, chunk_tokens]: of queries, of keys
  const T* beta = nullptr;            // of the chunk's tokens, shape.heads apart
  const T* bonus = nullptr;           // [key width]

  Reach query_reach() const { return shape.bonus ? Reach::before_itself : Reach::through_itself; }
  T rate(std::int64_t i) const { return beta[i * shape.heads]; }

 private:
  const GatedRecurrenceInputs* inputs_ = nullptr;
};

// state: [key width, columns], rows column_stride apart. from, to: the states of all rows and heads, any strides.
// Loading sets the transition's columns to the identity, and the others to zero where `from` is null.
template <class T>
void load_state(const GatedShape& shape, const Tensor& from, std::int64_t row, std::int64_t head, T* state);
template <class T>
void store_state(const GatedShape& shape, const T* state, const Tensor& to, std::int64_t row, std::int64_t head);

}  // namespace fulmen::cpu
