// Within a chunk, with A the keys' scores times beta, S the state in front of it and D the decays:
//   W = (I + A)^-1 beta (V - (K from start) S),   O = (Q from start) S + scores W,   S' = D S + (K to end)^T W
// The triangular system is solved row by row, which costs as much as a product.
#include "kernels/cpu/gated_recurrence_chunk.h"

#include <algorithm>
#include <cstring>

#include <omp.h>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/small_product.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {

namespace {

template <class T>
FULMEN_VECTORIZED void subtract_scaled(T factor, const T* from, std::int64_t count, T* to) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] -= factor * from[c];
}

template <class T>
FULMEN_VECTORIZED void scale(T factor, std::int64_t count, T* to) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] *= factor;
}

template <class T>
void copy_rows(const HeadRows<T>& from, const Chunk& chunk, std::int64_t width, T factor, T* to, std::int64_t stride) {
  for (std::int64_t i = 0; i < chunk.length; ++i) {
    std::memcpy(to + i * stride, from.at(chunk.begin + i), width * sizeof(T));
    if (factor != T(1)) scale(factor, width, to + i * stride);
  }
}

std::int64_t padded(DType dtype, std::int64_t width) {
  return dtype == DType::fp64 ? padded_columns<double>(width) : padded_columns<float>(width);
}

}  // namespace

GatedShape::GatedShape(const GatedRecurrenceInputs& inputs, std::int64_t transition_columns)
    : batch(inputs.key.size(0)),
      length(inputs.key.size(1)),
      key_heads(inputs.key.size(2)),
      heads(inputs.log_decay.size(2)),
      key_width(inputs.key.size(3)),
      value_width(inputs.value ? inputs.value.size(3) : inputs.initial_state.size(3)),
      columns(value_width + transition_columns),
      key_stride(padded(inputs.key.dtype(), key_width)),
      column_stride(padded(inputs.key.dtype(), columns)),
      per_channel(inputs.per_channel()),
      delta(inputs.delta()),
      bonus(!inputs.bonus.is_null()) {}

int gated_recurrence_threads(const GatedShape& shape) {
  const std::int64_t tasks = shape.batch * shape.key_heads;
  const std::int64_t work = shape.batch * shape.length * shape.heads * (shape.key_width + shape.columns);
  return work < parallel_threshold ? 1 : static_cast<int>(std::min<std::int64_t>(omp_get_max_threads(), tasks));
}

template <class T>
GatedChunk<T>::GatedChunk(const GatedShape& of_shape, Carver<T>& carver)
    : shape(of_shape), decay(of_shape.key_width, of_shape.per_channel, carver) {
  const std::int64_t keys = chunk_tokens * shape.key_stride, values = chunk_tokens * shape.column_stride;
  query = carver.take(keys), key = carver.take(keys), reading = carver.take(keys), ending = carver.take(keys);
  starting = shape.delta ? carver.take(keys) : nullptr;
  value = carver.take(values);
  residual = shape.delta ? carver.take(values) : nullptr;
  written = shape.delta ? carver.take(values) : value;
  scores = carver.take(chunk_tokens * chunk_tokens);
  pairs = shape.delta ? carver.take(chunk_tokens * chunk_tokens) : nullptr;
}

template <class T>
void GatedChunk<T>::select(const GatedRecurrenceInputs& inputs, std::int64_t of_row, std::int64_t of_head) {
  inputs_ = &inputs, row = of_row, head = of_head;
  if (shape.bonus) bonus = inputs.bonus.as<T>() + head * shape.key_width;
}

template <class T>
void GatedChunk<T>::load_keys(const Chunk& chunk) {
  length = chunk.length;
  copy_rows(HeadRows<T>(inputs_->key, row, head / shape.group()), chunk, shape.key_width, T(1), key, shape.key_stride);
  const std::int64_t token = (row * shape.length + chunk.begin) * shape.heads + head;
  const std::int64_t width = shape.per_channel ? shape.key_width : 1;
  decay.load(inputs_->log_decay.as<T>() + token * width, shape.heads * width, length);
  if (shape.delta) beta = inputs_->beta.as<T>() + token;
}

template <class T>
void GatedChunk<T>::load_values(const Chunk& chunk) {
  if (!inputs_->value) return;  // the workspace starts as zeros
  copy_rows(HeadRows<T>(inputs_->value, row, head), chunk, shape.value_width, T(1), value, shape.column_stride);
}

template <class T>
void GatedChunk<T>::load_queries(const Chunk& chunk) {
  copy_rows(HeadRows<T>(inputs_->query, row, head / shape.group()), chunk, shape.key_width,
            static_cast<T>(inputs_->scale), query, shape.key_stride);
}

template <class T>
void GatedChunk<T>::product(std::int64_t rows, std::int64_t depth, const T* a, std::int64_t a_row_stride,
                            std::int64_t a_depth_stride, const T* b, std::int64_t columns, T* c, bool add_to_c) const {
  multiply(SmallProduct<T>{.rows = rows,
                           .columns = columns,
                           .plain = {a, a_row_stride, a_depth_stride, b, columns, depth},
                           .carry = add_to_c ? c : nullptr,
                           .carry_row_stride = columns,
                           .c = c,
                           .c_row_stride = columns});
}

template <class T>
void GatedChunk<T>::write(const T* state) {
  if (!shape.delta) return;
  decay.scores(Reach::through_itself, false, key, key, pairs);
  decay.from_start(Reach::through_itself, key, starting);
  product(length, shape.key_width, starting, shape.key_stride, 1, state, shape.column_stride, residual, false);
  for (std::int64_t j = 0; j < length; ++j) {
    const std::int64_t at = j * shape.column_stride;
    for (std::int64_t v = 0; v < shape.columns; ++v) residual[at + v] = value[at + v] - residual[at + v];
    std::copy_n(residual + at, shape.columns, written + at);
    for (std::int64_t i = 0; i < j; ++i)
      subtract_scaled(pairs[j * chunk_tokens + i], written + i * shape.column_stride, shape.columns, written + at);
    scale(rate(j), shape.columns, written + at);
  }
}

template <class T>
void GatedChunk<T>::advance(T* state) {
  decay.to_end(key, ending);
  decay.over_chunk(state, shape.columns, shape.column_stride);
  product(shape.key_width, length, ending, 1, shape.key_stride, written, shape.column_stride, state, true);
}

template <class T>
void GatedChunk<T>::score() {
  decay.scores(query_reach(), !shape.bonus, query, key, scores);
  decay.from_start(query_reach(), query, reading);
  for (std::int64_t j = 0; j < length && shape.bonus; ++j) {
    const std::int64_t at = j * shape.key_stride;
    T sum = 0;
    for (std::int64_t c = 0; c < shape.key_width; ++c) sum += query[at + c] * bonus[c] * key[at + c];
    scores[j * chunk_tokens + j] = sum;
  }
}

template <class T>
void GatedChunk<T>::read(const T* state, T* output) const {
  product(length, shape.key_width, reading, shape.key_stride, 1, state, shape.column_stride, output, false);
  product(length, length, scores, chunk_tokens, 1, written, shape.column_stride, output, true);
}

template <class T>
void load_state(const GatedShape& shape, const Tensor& from, std::int64_t row, std::int64_t head, T* state) {
  std::fill_n(state, shape.state_elements(), T(0));
  for (std::int64_t c = 0; c < shape.key_width; ++c) {
    T* const to = state + c * shape.column_stride;
    if (from)
      std::copy_n(from.as<T>() + row * from.stride(0) + head * from.stride(1) + c * from.stride(2), shape.value_width,
                  to);
    if (shape.columns > shape.value_width) to[shape.value_width + (shape.delta ? c : 0)] = T(1);
  }
}

template <class T>
void store_state(const GatedShape& shape, const T* state, const Tensor& to, std::int64_t row, std::int64_t head) {
  for (std::int64_t c = 0; c < shape.key_width; ++c)
    std::copy_n(state + c * shape.column_stride, shape.columns,
                to.as<T>() + row * to.stride(0) + head * to.stride(1) + c * to.stride(2));
}

template class GatedChunk<float>;
template class GatedChunk<double>;
template void load_state(const GatedShape&, const Tensor&, std::int64_t, std::int64_t, float*);
template void load_state(const GatedShape&, const Tensor&, std::int64_t, std::int64_t, double*);
template void store_state(const GatedShape&, const float*, const Tensor&, std::int64_t, std::int64_t);
template void store_state(const GatedShape&, const double*, const Tensor&, std::int64_t, std::int64_t);

}  // namespace fulmen::cpu
