// Chunked linear attention, backward (Lightning Attention-2, arXiv 2401.04658, algorithm 2). Per head: from left to
// right the states are computed again and kept, a state per chunk. From right to left the gradients follow with the
// state's adjoint.
#include <algorithm>
#include <cstring>

#include <omp.h>

#include "kernels/cpu/linear_attention_chunk.h"
#include "kernels/cpu/vectorize.h"
#include "kernels/linear_attention.h"

namespace fulmen::cpu {
namespace {

// to = from .* derivatives (null: 1).
template <class T>
FULMEN_VECTORIZED void store_gradient(const T* from, std::int64_t from_stride, const T* derivatives, std::int64_t rows,
                                      std::int64_t width, T* to, std::int64_t to_stride,
                                      std::int64_t derivative_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    if (derivatives == nullptr) {
      std::memcpy(to, from, width * sizeof(T));
    } else {
#pragma omp simd
      for (std::int64_t j = 0; j < width; ++j) to[j] = from[j] * derivatives[j];
      derivatives += derivative_stride;
    }
    from += from_stride, to += to_stride;
  }
}

template <class T>
struct Workspace {
  Workspace(const AttentionShape& shape, const LinearAttentionInputs& inputs, std::int64_t states_kept, void* memory) {
    Carver<T> carver(memory);
    const std::int64_t keys = chunk_tokens * shape.key_stride, values = chunk_tokens * shape.value_stride;
    query = carver.take(keys), key = carver.take(keys), d_query = carver.take(keys), d_key = carver.take(keys);
    value = carver.take(values), d_output = carver.take(values), d_value = carver.take(values);
    key_transposed = carver.take(shape.state_width * chunk_tokens);
    value_transposed = carver.take(shape.value_width * chunk_tokens);
    scores = carver.take(chunk_tokens * chunk_tokens), d_scores = carver.take(chunk_tokens * chunk_tokens);
    adjoint = carver.take(shape.state_width * shape.value_stride);
    adjoint_transposed = carver.take(shape.value_width * shape.key_stride);
    decays = carver.take(DecayTable<T>::elements());
    if (inputs.query_key_activation != Activation::none)
      query_derivative = carver.take(keys), key_derivative = carver.take(keys);
    if (inputs.value_activation != Activation::none) value_derivative = carver.take(values);
    if (inputs.theta) {
      const std::int64_t narrow = chunk_tokens * shape.key_width;
      activated_query = carver.take(narrow), activated_key = carver.take(narrow);
      tables.angles = carver.template take<double>(narrow);
      tables.cosines = carver.take(narrow), tables.sines = carver.take(narrow);
    }
    padded_bytes = carver.bytes();
    states = carver.take(states_kept * shape.value_width * shape.key_stride);
    bytes = carver.bytes();
  }

  T *query, *key, *d_query, *d_key, *value, *d_output, *d_value, *key_transposed, *value_transposed;
  T *scores, *d_scores, *adjoint, *adjoint_transposed, *decays;
  T *query_derivative = nullptr, *key_derivative = nullptr, *value_derivative = nullptr;
  T *activated_query = nullptr, *activated_key = nullptr;  // before LRPE doubles them
  LrpeScratch<T> tables;
  std::int64_t padded_bytes;  // to be zeroed before use
  T* states;                  // transposed, [value_width, key_stride] each
  std::int64_t bytes;
};

// One head of one row.
template <class T>
class HeadBackward {
 public:
  HeadBackward(const AttentionShape& shape, const LinearAttentionInputs& inputs,
               const LinearAttentionGradients& gradients, const Workspace<T>& work, double* d_theta, std::int64_t row,
               std::int64_t head)
      : shape_(shape),
        inputs_(inputs),
        gradients_(gradients),
        work_(work),
        d_theta_(d_theta),
        row_(row),
        head_(head),
        narrow_stride_(inputs.theta ? shape.key_width : shape.key_stride),
        decay_(work.decays, inputs.slope.as<double>()[head]),
        query_(inputs.query, row, head),
        key_(inputs.key, row, head),
        value_(inputs.value, row, head),
        d_output_(gradients.d_output, row, head),
        d_query_(gradients.d_query, row, head),
        d_key_(gradients.d_key, row, head),
        d_value_(gradients.d_value, row, head) {}

  void run(const std::vector<Chunk>& chunks) {
    recompute_states(chunks);
    for (auto chunk = chunks.rbegin(); chunk != chunks.rend(); ++chunk) {
      if (chunk->ends_segment) start_adjoint(chunk == chunks.rbegin());
      const bool has_state = !chunk->starts_segment || starts_from_initial_state(*chunk);
      load(*chunk);
      differentiate(*chunk, has_state ? state_ : nullptr);
      store(*chunk);
      if (has_state) state_ -= state_elements();
      if (!chunk->starts_segment || (chunk->begin == 0 && gradients_.d_initial_state)) advance_adjoint(*chunk);
    }
    if (gradients_.d_initial_state) store_adjoint();
  }

 private:
  std::int64_t state_elements() const { return shape_.value_width * shape_.key_stride; }
  std::int64_t state_offset() const { return (row_ * shape_.heads + head_) * shape_.state_width * shape_.value_width; }
  bool starts_from_initial_state(const Chunk& chunk) const { return chunk.begin == 0 && inputs_.initial_state; }

  // Writes the state at the start of every chunk that has one; leaves state_ at the last of them.
  void recompute_states(const std::vector<Chunk>& chunks) {
    state_ = work_.states - state_elements();
    for (const Chunk& chunk : chunks) {
      bool has_state = !chunk.starts_segment;
      if (starts_from_initial_state(chunk)) {
        state_ += state_elements();
        load_initial_state();
        has_state = true;
      }
      if (chunk.ends_segment) continue;
      load_key(chunk, nullptr);
      load_value(chunk, nullptr);
      append_state(chunk, has_state);
    }
  }

  void load_initial_state() {
    for (std::int64_t j = 0; j < shape_.value_width; ++j)
      std::fill(state_ + j * shape_.key_stride + shape_.state_width, state_ + (j + 1) * shape_.key_stride, T(0));
    transpose(inputs_.initial_state.as<T>() + state_offset(), shape_.value_width, shape_.state_width,
              shape_.value_width, state_, shape_.key_stride);
  }

  // S'^T = decay^m S^T + (diag(decay^(m-1) ... decay^0) V)^T K, behind the state that it follows.
  void append_state(const Chunk& chunk, bool has_state) {
    scale_rows(work_.value, shape_.value_stride, chunk.length, shape_.value_width, decay_.to_end(chunk.length));
    multiply(SmallProduct<T>{.rows = shape_.value_width,
                             .columns = shape_.key_stride,
                             .plain = {work_.value, 1, shape_.value_stride, work_.key, shape_.key_stride, chunk.length},
                             .carry = has_state ? state_ : nullptr,
                             .carry_row_stride = shape_.key_stride,
                             .carry_scale = decay_.power(chunk.length),
                             .c = state_ + state_elements(),
                             .c_row_stride = shape_.key_stride});
    state_ += state_elements();
  }

  void start_adjoint(bool row_ends) {
    has_adjoint_ = row_ends && gradients_.d_final_state;
    if (!has_adjoint_) return;
    load_rows(Activation::none, gradients_.d_final_state.as<T>() + state_offset(), shape_.value_width,
              shape_.state_width, shape_.value_width, work_.adjoint, static_cast<T*>(nullptr), shape_.value_stride);
  }

  void load(const Chunk& chunk) {
    load_key(chunk, work_.key_derivative);
    load_key_like(query_, chunk, work_.query, work_.activated_query, work_.query_derivative);
    load_value(chunk, work_.value_derivative);
    load_rows(Activation::none, d_output_.at(chunk.begin), d_output_.stride, chunk.length, shape_.value_width,
              work_.d_output, static_cast<T*>(nullptr), shape_.value_stride);
    transpose(work_.key, shape_.key_stride, chunk.length, shape_.state_width, work_.key_transposed, chunk_tokens);
    transpose(work_.value, shape_.value_stride, chunk.length, shape_.value_width, work_.value_transposed, chunk_tokens);
  }

  const std::int64_t* positions(const Chunk& chunk) const {
    const Tensor& all = inputs_.positions;
    return all.as<std::int64_t>() + row_ * all.stride(0) + chunk.begin * all.stride(1);
  }

  void load_key(const Chunk& chunk, T* derivative) {
    if (inputs_.theta)
      lrpe_tables(positions(chunk), inputs_.positions.stride(1), inputs_.theta.as<double>() + head_ * shape_.key_width,
                  chunk.length, shape_.key_width, work_.tables.angles, work_.tables.cosines, work_.tables.sines);
    load_key_like(key_, chunk, work_.key, work_.activated_key, derivative);
  }

  void load_value(const Chunk& chunk, T* derivative) {
    load_rows(inputs_.value_activation, value_.at(chunk.begin), value_.stride, chunk.length, shape_.value_width,
              work_.value, derivative, shape_.value_stride);
  }

  void load_key_like(const HeadRows<T>& rows, const Chunk& chunk, T* to, T* activated, T* derivative) {
    load_rows(inputs_.query_key_activation, rows.at(chunk.begin), rows.stride, chunk.length, shape_.key_width,
              inputs_.theta ? activated : to, derivative, narrow_stride_);
    if (inputs_.theta)
      lrpe_expand(activated, shape_.key_width, work_.tables.cosines, work_.tables.sines, chunk.length, shape_.key_width,
                  to, shape_.key_stride);
  }

  // With P = (Q K^T) .* M, dP = (dO V^T) .* M, a = diag(decay^1 ... decay^m) and b = diag(decay^(m-1) ... decay^0):
  //   dQ = a dO S^T + dP K,   dK = b V dS^T + dP^T Q,   dV = b K dS + P^T dO
  void differentiate(const Chunk& chunk, const T* state) {
    masked_scores(chunk, {work_.query, shape_.key_stride, 1, work_.key_transposed, chunk_tokens, shape_.state_width},
                  work_.scores);
    masked_scores(chunk,
                  {work_.d_output, shape_.value_stride, 1, work_.value_transposed, chunk_tokens, shape_.value_width},
                  work_.d_scores);
    multiply(SmallProduct<T>{.rows = chunk.length,
                             .columns = shape_.key_stride,
                             .scaled = {work_.d_output, shape_.value_stride, 1, state, shape_.key_stride,
                                        state != nullptr ? shape_.value_width : 0},
                             .row_scale = decay_.from_start(),
                             .plain = {work_.d_scores, chunk_tokens, 1, work_.key, shape_.key_stride, chunk.length},
                             .contraction = Contraction::up_to_diagonal,
                             .c = work_.d_query,
                             .c_row_stride = shape_.key_stride});
    if (has_adjoint_)
      transpose(work_.adjoint, shape_.value_stride, shape_.state_width, shape_.value_width, work_.adjoint_transposed,
                shape_.key_stride);
    multiply(SmallProduct<T>{.rows = chunk.length,
                             .columns = shape_.key_stride,
                             .scaled = {work_.value, shape_.value_stride, 1, work_.adjoint_transposed,
                                        shape_.key_stride, has_adjoint_ ? shape_.value_width : 0},
                             .row_scale = decay_.to_end(chunk.length),
                             .plain = {work_.d_scores, 1, chunk_tokens, work_.query, shape_.key_stride, chunk.length},
                             .contraction = Contraction::from_diagonal,
                             .c = work_.d_key,
                             .c_row_stride = shape_.key_stride});
    multiply(
        SmallProduct<T>{.rows = chunk.length,
                        .columns = shape_.value_stride,
                        .scaled = {work_.key, shape_.key_stride, 1, work_.adjoint, shape_.value_stride,
                                   has_adjoint_ ? shape_.state_width : 0},
                        .row_scale = decay_.to_end(chunk.length),
                        .plain = {work_.scores, 1, chunk_tokens, work_.d_output, shape_.value_stride, chunk.length},
                        .contraction = Contraction::from_diagonal,
                        .c = work_.d_value,
                        .c_row_stride = shape_.value_stride});
  }

  void masked_scores(const Chunk& chunk, const Factors<T>& factors, T* scores) {
    multiply(SmallProduct<T>{.rows = chunk.length,
                             .columns = padded_columns<T>(chunk.length),
                             .plain = factors,
                             .mask = decay_.causal(),
                             .c = scores,
                             .c_row_stride = chunk_tokens});
  }

  void store(const Chunk& chunk) {
    store_key_like(work_.d_query, work_.activated_query, work_.query_derivative, chunk, d_query_);
    store_key_like(work_.d_key, work_.activated_key, work_.key_derivative, chunk, d_key_);
    store_gradient(work_.d_value, shape_.value_stride, work_.value_derivative, chunk.length, shape_.value_width,
                   d_value_.at(chunk.begin), d_value_.stride, shape_.value_stride);
  }

  void store_key_like(T* gradient, const T* activated, const T* derivative, const Chunk& chunk, const HeadRows<T>& to) {
    if (inputs_.theta)
      lrpe_backward(gradient, shape_.key_stride, activated, work_.tables.cosines, work_.tables.sines, positions(chunk),
                    inputs_.positions.stride(1), chunk.length, shape_.key_width, d_theta_);
    store_gradient(gradient, shape_.key_stride, derivative, chunk.length, shape_.key_width, to.at(chunk.begin),
                   to.stride, narrow_stride_);
  }

  // dS = decay^m dS' + (diag(decay^1 ... decay^m) Q)^T dO
  void advance_adjoint(const Chunk& chunk) {
    scale_rows(work_.d_output, shape_.value_stride, chunk.length, shape_.value_width, decay_.from_start());
    multiply(
        SmallProduct<T>{.rows = shape_.state_width,
                        .columns = shape_.value_stride,
                        .plain = {work_.query, 1, shape_.key_stride, work_.d_output, shape_.value_stride, chunk.length},
                        .carry = has_adjoint_ ? work_.adjoint : nullptr,
                        .carry_row_stride = shape_.value_stride,
                        .carry_scale = decay_.power(chunk.length),
                        .c = work_.adjoint,
                        .c_row_stride = shape_.value_stride});
    has_adjoint_ = true;
  }

  void store_adjoint() {
    store_gradient(work_.adjoint, shape_.value_stride, static_cast<const T*>(nullptr), shape_.state_width,
                   shape_.value_width, gradients_.d_initial_state.as<T>() + state_offset(), shape_.value_width,
                   std::int64_t{0});
  }

  const AttentionShape& shape_;
  const LinearAttentionInputs& inputs_;
  const LinearAttentionGradients& gradients_;
  const Workspace<T>& work_;
  double* d_theta_;  // [key_width], this row's share
  std::int64_t row_, head_;
  std::int64_t narrow_stride_;  // of activated queries and keys and of the derivatives
  DecayTable<T> decay_;
  HeadRows<T> query_, key_, value_, d_output_, d_query_, d_key_, d_value_;
  T* state_ = nullptr;  // the state at the start of the chunk at hand
  bool has_adjoint_ = false;
};

// The most states that a row's recomputation keeps: one per chunk that does not start from zero.
std::int64_t states_per_row(const std::vector<std::vector<Chunk>>& rows, bool initial_state) {
  std::int64_t most = 0;
  for (const auto& chunks : rows) {
    const auto continued =
        std::count_if(chunks.begin(), chunks.end(), [](const Chunk& chunk) { return !chunk.starts_segment; });
    most = std::max<std::int64_t>(most, continued + (initial_state ? 1 : 0));
  }
  return most;
}

}  // namespace

void linear_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                               const LinearAttentionGradients& gradients) {
  const AttentionShape shape(inputs);
  const auto chunks = cut_into_chunks(inputs.segments, shape.batch, shape.length);
  const std::int64_t tasks = shape.batch * shape.heads;
  const int threads = attention_threads(shape);
  Arena::Frame frame(*execution.scratch);
  double* d_theta = nullptr;
  if (inputs.theta) {
    d_theta = execution.scratch->take(DType::fp64, {tasks, shape.key_width}).as<double>();
    if (!execution.plans()) std::fill_n(d_theta, tasks * shape.key_width, 0.0);
  }
  dispatch_fp32_fp64(inputs.query.dtype(), [&]<class T>(T) {
    const std::int64_t states = states_per_row(chunks, static_cast<bool>(inputs.initial_state));
    const std::int64_t bytes = Workspace<T>(shape, inputs, states, nullptr).bytes;
    auto* const memory = execution.scratch->take(DType::uint8, {threads, bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
#pragma omp parallel num_threads(threads)
    {
      // The padding of every matrix must be finite.
      std::uint8_t* const own = memory + omp_get_thread_num() * bytes;
      const Workspace<T> work(shape, inputs, states, own);
      std::memset(own, 0, work.padded_bytes);
#pragma omp for schedule(dynamic)
      for (std::int64_t task = 0; task < tasks; ++task) {
        const std::int64_t row = task / shape.heads;
        HeadBackward<T>(shape, inputs, gradients, work, d_theta == nullptr ? nullptr : d_theta + task * shape.key_width,
                        row, task % shape.heads)
            .run(chunks[row]);
      }
    }
  });
  if (d_theta != nullptr && !execution.plans()) add_theta_gradients(shape, d_theta, gradients.d_theta.as<double>());
}

}  // namespace fulmen::cpu
