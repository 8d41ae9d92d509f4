// Gated recurrences in chunk form, backward. Per head: from left to right the states in front of the chunks are
// computed again and kept; from right to left the gradients follow with the state's adjoint.
#include <algorithm>
#include <cstring>

#include <omp.h>

#include "kernels/cpu/gated_recurrence_chunk.h"
#include "kernels/cpu/small_product.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

template <class T>
FULMEN_VECTORIZED T dot(const T* a, const T* b, std::int64_t count) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t c = 0; c < count; ++c) sum += a[c] * b[c];
  return sum;
}

template <class T>
FULMEN_VECTORIZED void add_scaled(T factor, const T* from, std::int64_t count, T* to) {
#pragma omp simd
  for (std::int64_t c = 0; c < count; ++c) to[c] += factor * from[c];
}

template <class T>
struct Workspace {
  Workspace(const GatedShape& shape, std::int64_t states_kept, void* memory) : carver(memory), chunk(shape, carver) {
    const std::int64_t keys = chunk_tokens * shape.key_stride, values = chunk_tokens * shape.column_stride;
    d_query = carver.take(keys), d_key = carver.take(keys), d_scaled = carver.take(keys);
    d_output = carver.take(values), d_written = carver.take(values);
    written_transposed = carver.take(shape.columns * chunk_tokens);
    state_transposed = carver.take(shape.columns * shape.key_stride);
    adjoint_transposed = carver.take(shape.columns * shape.key_stride);
    d_scores = carver.take(chunk_tokens * chunk_tokens);
    d_pairs = shape.delta ? carver.take(chunk_tokens * chunk_tokens) : nullptr;
    adjoint = carver.take(shape.state_elements());
    d_bonus = shape.bonus ? carver.template take<double>(shape.key_width) : nullptr;
    d_beta = shape.delta ? carver.template take<double>(chunk_tokens) : nullptr;
    states = carver.take(states_kept * shape.state_elements());
    bytes = carver.bytes();
  }

  Carver<T> carver;
  GatedChunk<T> chunk;
  T *d_query, *d_key, *d_scaled;             // [length, key width]
  T *d_output, *d_written;                   // [length, columns]
  T* written_transposed;                     // [columns, chunk_tokens]
  T *state_transposed, *adjoint_transposed;  // [columns, key width]
  T *d_scores, *d_pairs, *adjoint;
  double *d_bonus, *d_beta;
  T* states;  // in front of each chunk of the row
  std::int64_t bytes;
};

// One head of values of one row.
template <class T>
class HeadBackward {
 public:
  HeadBackward(const GatedShape& shape, const GatedRecurrenceInputs& inputs, const GatedRecurrenceGradients& gradients,
               Workspace<T>& work)
      : shape_(shape),
        inputs_(inputs),
        gradients_(gradients),
        work_(work),
        chunk_(work.chunk),
        row_(work.chunk.row),
        head_(work.chunk.head) {}

  void run(const std::vector<Chunk>& chunks) {
    recompute_states(chunks);
    for (std::int64_t n = std::ssize(chunks) - 1; n >= 0; --n) {
      const Chunk& chunk = chunks[n];
      T* const state = work_.states + n * shape_.state_elements();
      if (chunk.ends_segment)
        load_state(shape_, n + 1 == std::ssize(chunks) ? gradients_.d_final_state : Tensor(), row_, head_,
                   work_.adjoint);
      load(chunk, state);
      differentiate(state);
      if (gradients_.d_query) store(chunk);
    }
    if (gradients_.d_initial_state) store_state(shape_, work_.adjoint, gradients_.d_initial_state, row_, head_);
  }

 private:
  void recompute_states(const std::vector<Chunk>& chunks) {
    T* state = work_.states;
    for (const Chunk& chunk : chunks) {
      if (chunk.starts_segment)
        load_state(shape_, chunk.begin == 0 ? inputs_.initial_state : Tensor(), row_, head_, state);
      if (!chunk.ends_segment) {
        chunk_.load_keys(chunk);
        chunk_.load_values(chunk);
        chunk_.write(state);
        std::copy_n(state, shape_.state_elements(), state + shape_.state_elements());
        chunk_.advance(state + shape_.state_elements());
      }
      state += shape_.state_elements();
    }
  }

  void load(const Chunk& chunk, const T* state) {
    chunk_.load_keys(chunk);
    chunk_.load_values(chunk);
    chunk_.load_queries(chunk);
    chunk_.write(state);
    chunk_.score();
    chunk_.decay.to_end(chunk_.key, chunk_.ending);
    chunk_.decay.clear_gradients();
    if (!gradients_.d_output) return;  // the workspace starts as zeros
    const HeadRows<T> rows(gradients_.d_output, row_, head_);
    for (std::int64_t i = 0; i < chunk.length; ++i)
      std::copy_n(rows.at(chunk.begin + i), shape_.value_width, work_.d_output + i * shape_.column_stride);
  }

  // Gradients of a chunk. S is the state in front of it. The adjoint belongs to the state behind it before, to S after.
  void differentiate(T* state) {
    const std::int64_t length = chunk_.length, keys = shape_.key_stride, columns = shape_.column_stride;
    transpose(state, columns, shape_.key_width, shape_.columns, work_.state_transposed, keys);
    chunk_.decay.add_over_chunk(state, work_.adjoint, shape_.columns, columns);
    // The tokens wrote to the chunk's readers, and to the state behind it.
    chunk_.product(length, length, chunk_.scores, 1, chunk_tokens, work_.d_output, columns, work_.d_written, false);
    chunk_.product(length, shape_.key_width, chunk_.ending, keys, 1, work_.adjoint, columns, work_.d_written, true);
    differentiate_queries();
    differentiate_endings();
    chunk_.decay.over_chunk(work_.adjoint, shape_.columns, columns);
    chunk_.product(shape_.key_width, length, chunk_.reading, 1, keys, work_.d_output, columns, work_.adjoint, true);
    if (shape_.delta) differentiate_writes();
    if (gradients_.d_query) differentiate_scores();
  }

  // d of the queries that read the state.
  void differentiate_queries() {
    chunk_.product(chunk_.length, shape_.columns, work_.d_output, shape_.column_stride, 1, work_.state_transposed,
                   shape_.key_stride, work_.d_scaled, false);
    chunk_.decay.add_from_start(chunk_.query_reach(), chunk_.reading, work_.d_scaled);
    chunk_.decay.from_start(chunk_.query_reach(), work_.d_scaled, work_.d_query);
  }

  // d of the keys that what was written is added to the state with.
  void differentiate_endings() {
    transpose(work_.adjoint, shape_.column_stride, shape_.key_width, shape_.columns, work_.adjoint_transposed,
              shape_.key_stride);
    chunk_.product(chunk_.length, shape_.columns, chunk_.written, shape_.column_stride, 1, work_.adjoint_transposed,
                   shape_.key_stride, work_.d_scaled, false);
    chunk_.decay.add_to_end(chunk_.ending, work_.d_scaled);
    chunk_.decay.to_end(work_.d_scaled, work_.d_key);
  }

  // Through the triangular system and the residuals: d_written becomes the gradient of the values.
  void differentiate_writes() {
    const std::int64_t length = chunk_.length, keys = shape_.key_stride, columns = shape_.column_stride;
    for (std::int64_t j = length - 1; j >= 0; --j) {
      T* const d = work_.d_written + j * columns;
      work_.d_beta[j] = 0;
      for (std::int64_t i = 0; i < j; ++i) {
        const T d_product = -dot(d, chunk_.written + i * columns, shape_.columns);
        const std::int64_t at = j * chunk_tokens + i;
        work_.d_pairs[at] = chunk_.rate(j) * d_product;
        work_.d_beta[j] += static_cast<double>(d_product) * static_cast<double>(chunk_.pairs[at]);
        add_scaled(-chunk_.rate(j) * chunk_.pairs[at], d, shape_.columns, work_.d_written + i * columns);
      }
      std::fill_n(work_.d_pairs + j * chunk_tokens + j, chunk_tokens - j, T(0));
      work_.d_beta[j] += static_cast<double>(dot(d, chunk_.residual + j * columns, shape_.columns));
      for (std::int64_t v = 0; v < shape_.columns; ++v) d[v] *= chunk_.rate(j);
    }
    // The residual was V - (K from start) S.
    T* const negative = chunk_.residual;
    for (std::int64_t at = 0; at < length * columns; ++at) negative[at] = -work_.d_written[at];
    chunk_.product(length, shape_.columns, negative, columns, 1, work_.state_transposed, keys, work_.d_scaled, false);
    chunk_.decay.add_from_start(Reach::through_itself, chunk_.starting, work_.d_scaled);
    chunk_.decay.from_start(Reach::through_itself, work_.d_scaled, work_.d_scaled);
    add_scaled(T(1), work_.d_scaled, length * keys, work_.d_key);
    chunk_.product(shape_.key_width, length, chunk_.starting, 1, keys, negative, columns, work_.adjoint, true);
    chunk_.decay.scores_backward(Reach::through_itself, false, chunk_.key, chunk_.key, chunk_.pairs, work_.d_pairs,
                                 work_.d_key, work_.d_key);
  }

  void differentiate_scores() {
    const std::int64_t length = chunk_.length;
    transpose(chunk_.written, shape_.column_stride, length, shape_.columns, work_.written_transposed, chunk_tokens);
    chunk_.product(length, shape_.columns, work_.d_output, shape_.column_stride, 1, work_.written_transposed,
                   chunk_tokens, work_.d_scores, false);
    chunk_.decay.scores_backward(chunk_.query_reach(), !shape_.bonus, chunk_.query, chunk_.key, chunk_.scores,
                                 work_.d_scores, work_.d_query, work_.d_key);
    for (std::int64_t j = 0; j < length && shape_.bonus; ++j) {
      const std::int64_t at = j * shape_.key_stride;
      const T d = work_.d_scores[j * chunk_tokens + j];
      for (std::int64_t c = 0; c < shape_.key_width; ++c) {
        const T query = chunk_.query[at + c], key = chunk_.key[at + c];
        work_.d_query[at + c] += d * chunk_.bonus[c] * key;
        work_.d_key[at + c] += d * chunk_.bonus[c] * query;
        work_.d_bonus[c] += static_cast<double>(d) * static_cast<double>(query) * static_cast<double>(key);
      }
    }
  }

  void store(const Chunk& chunk) {
    // Heads of values that share a head of keys follow each other.
    const bool adds = gradients_.accumulates || head_ % shape_.group() > 0;
    const std::int64_t key_head = head_ / shape_.group();
    store_rows(gradients_.d_query, key_head, chunk, shape_.key_width, static_cast<T>(inputs_.scale), adds,
               work_.d_query, shape_.key_stride);
    store_rows(gradients_.d_key, key_head, chunk, shape_.key_width, T(1), adds, work_.d_key, shape_.key_stride);
    if (gradients_.d_value)
      store_rows(gradients_.d_value, head_, chunk, shape_.value_width, T(1), gradients_.accumulates, work_.d_written,
                 shape_.column_stride);
    const std::int64_t token = (row_ * shape_.length + chunk.begin) * shape_.heads + head_;
    const std::int64_t width = shape_.per_channel ? shape_.key_width : 1;
    chunk_.decay.store_gradients(gradients_.d_log_decay.as<T>() + token * width, shape_.heads * width,
                                 gradients_.accumulates);
    for (std::int64_t i = 0; i < chunk.length && shape_.delta; ++i) {
      T& to = gradients_.d_beta.as<T>()[token + i * shape_.heads];
      to = static_cast<T>(work_.d_beta[i] + (gradients_.accumulates ? static_cast<double>(to) : 0.0));
    }
  }

  void store_rows(const Tensor& to, std::int64_t head, const Chunk& chunk, std::int64_t width, T factor, bool adds,
                  const T* from, std::int64_t stride) const {
    const HeadRows<T> rows(to, row_, head);
    for (std::int64_t i = 0; i < chunk.length; ++i) {
      T* const row = rows.at(chunk.begin + i);
      if (!adds) std::fill_n(row, width, T(0));
      add_scaled(factor, from + i * stride, width, row);
    }
  }

  const GatedShape& shape_;
  const GatedRecurrenceInputs& inputs_;
  const GatedRecurrenceGradients& gradients_;
  Workspace<T>& work_;
  GatedChunk<T>& chunk_;
  std::int64_t row_, head_;
};

// d_bonus [heads, key width] += the rows' shares, in the order of the rows.
template <class T>
void add_bonus_gradients(const GatedShape& shape, const double* shares, const Tensor& d_bonus) {
  T* const to = d_bonus.as<T>();
  const std::int64_t elements = shape.heads * shape.key_width;
  for (std::int64_t at = 0; at < elements; ++at) {
    double sum = static_cast<double>(to[at]);
    for (std::int64_t row = 0; row < shape.batch; ++row) sum += shares[row * elements + at];
    to[at] = static_cast<T>(sum);
  }
}

template <class T>
void run(const Execution& execution, const GatedShape& shape, const GatedRecurrenceInputs& inputs,
         const GatedRecurrenceGradients& gradients) {
  const auto chunks = cut_into_chunks(inputs.segments, shape.batch, shape.length);
  std::size_t most = 0;
  for (const auto& row : chunks) most = std::max(most, row.size());
  const std::int64_t states = static_cast<std::int64_t>(most), tasks = shape.batch * shape.key_heads;
  const int threads = gated_recurrence_threads(shape);
  const std::int64_t bytes = Workspace<T>(shape, states, nullptr).bytes;
  Arena::Frame frame(*execution.scratch);
  auto* const memory = execution.scratch->take(DType::uint8, {threads, bytes}).template as<std::uint8_t>();
  double* shares = nullptr;
  if (shape.bonus)
    shares = execution.scratch->take(DType::fp64, {shape.batch, shape.heads, shape.key_width}).template as<double>();
  if (execution.plans()) return;
#pragma omp parallel num_threads(threads)
  {
    // The padding of every matrix must be finite, values and gradients that are not given zero.
    std::uint8_t* const own = memory + omp_get_thread_num() * bytes;
    std::memset(own, 0, bytes);
    Workspace<T> work(shape, states, own);
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < tasks; ++task) {
      const std::int64_t row = task / shape.key_heads, first = task % shape.key_heads * shape.group();
      for (std::int64_t head = first; head < first + shape.group(); ++head) {
        work.chunk.select(inputs, row, head);
        if (shape.bonus) std::fill_n(work.d_bonus, shape.key_width, 0.0);
        HeadBackward<T>(shape, inputs, gradients, work).run(chunks[row]);
        if (shape.bonus)
          std::copy_n(work.d_bonus, shape.key_width, shares + (row * shape.heads + head) * shape.key_width);
      }
    }
  }
  if (shape.bonus && gradients.d_query) add_bonus_gradients<T>(shape, shares, gradients.d_bonus);
}

}  // namespace

void gated_recurrence_backward(const Execution& execution, const GatedRecurrenceInputs& inputs,
                               const GatedRecurrenceGradients& gradients) {
  const GatedShape shape(inputs);
  dispatch_fp32_fp64(inputs.key.dtype(), [&]<class T>(T) { run<T>(execution, shape, inputs, gradients); });
}

}  // namespace fulmen::cpu
