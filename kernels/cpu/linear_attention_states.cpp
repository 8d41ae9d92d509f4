// The states that slices of a sequence pass on: a slice's contribution to them, their combination, and their
// contribution to a slice that was computed without them. Threads share out the heads of all rows, as in the chunk
// form.
#include "kernels/linear_attention_states.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include <omp.h>

#include "kernels/cpu/linear_attention_chunk.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

// to += from, rows of `width`; square_sums [rows], where asked for, gets each row's new sum of squares.
template <class T>
FULMEN_VECTORIZED void add_rows(const T* from, std::int64_t from_stride, std::int64_t rows, std::int64_t width, T* to,
                                std::int64_t to_stride, T* square_sums, std::int64_t square_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    T squares = 0;
#pragma omp simd reduction(+ : squares)
    for (std::int64_t j = 0; j < width; ++j) {
      to[j] += from[j];
      squares += to[j] * to[j];
    }
    if (square_sums != nullptr) square_sums[i * square_stride] = squares;
    from += from_stride, to += to_stride;
  }
}

// to += from .* derivatives.
template <class T>
FULMEN_VECTORIZED void add_gradient(const T* from, std::int64_t from_stride, const T* derivatives,
                                    std::int64_t derivative_stride, std::int64_t rows, std::int64_t width, T* to,
                                    std::int64_t to_stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
#pragma omp simd
    for (std::int64_t j = 0; j < width; ++j) to[j] += from[j] * derivatives[j];
    from += from_stride, to += to_stride, derivatives += derivative_stride;
  }
}

template <class T>
FULMEN_VECTORIZED void add_scaled(const T* from, T factor, std::int64_t elements, T* to) {
#pragma omp simd
  for (std::int64_t i = 0; i < elements; ++i) to[i] += factor * from[i];
}

template <class T>
struct Workspace {
  Workspace(const AttentionShape& shape, void* memory) {
    Carver<T> carver(memory);
    const std::int64_t keys = chunk_tokens * shape.key_stride, values = chunk_tokens * shape.value_stride;
    key = carver.take(keys), d_key = carver.take(keys), key_derivative = carver.take(keys);
    value = carver.take(values), d_value = carver.take(values), value_derivative = carver.take(values);
    state = carver.take(shape.state_width * shape.value_stride);
    state_transposed = carver.take(shape.value_width * shape.key_stride);
    decays = carver.take(DecayTable<T>::elements());
    activated = carver.take(chunk_tokens * shape.key_width);
    tables.angles = carver.template take<double>(chunk_tokens * shape.key_width);
    tables.cosines = carver.take(chunk_tokens * shape.key_width),
    tables.sines = carver.take(chunk_tokens * shape.key_width);
    bytes = carver.bytes();
  }

  T *key, *d_key, *key_derivative;        // or a query
  T *value, *d_value, *value_derivative;  // or an output's gradient; d_value: or what is added to the output
  T *state, *state_transposed, *decays;
  T* activated;  // a key before LRPE doubles it
  LrpeScratch<T> tables;
  std::int64_t bytes;
};

using Chunks = std::span<const Chunk>;

Chunks first_segment(const std::vector<Chunk>& chunks) {
  const auto last = std::find_if(chunks.begin(), chunks.end(), [](const Chunk& chunk) { return chunk.ends_segment; });
  return {chunks.begin(), last + 1};
}

Chunks last_segment(const std::vector<Chunk>& chunks) {
  auto first = chunks.end() - 1;
  while (!first->starts_segment) --first;
  return {first, chunks.end()};
}

// One head of one row.
template <class T>
class HeadStates {
 public:
  HeadStates(const AttentionShape& shape, const LinearAttentionInputs& inputs, const Workspace<T>& work,
             std::int64_t row, std::int64_t head)
      : shape_(shape),
        inputs_(inputs),
        work_(work),
        row_(row),
        head_(head),
        narrow_stride_(inputs.theta ? shape.key_width : shape.key_stride),
        decay_(work.decays, inputs.slope.as<double>()[head]) {}

  // S = decay^m S + (diag(decay^(m-1) ... decay^0) K)^T V, from left to right
  void sum_final_state(Chunks chunks, const Tensor& final_state) {
    bool started = false;
    for (const Chunk& chunk : chunks) {
      load_key_like(inputs_.key, chunk, nullptr);
      load_value_like(inputs_.value, inputs_.value_activation, chunk, nullptr);
      add_to_state(chunk, decay_.to_end(chunk.length), std::exchange(started, true));
    }
    store_state(final_state);
  }

  // dS = decay^m dS + (diag(decay^1 ... decay^m) Q)^T dO, from right to left
  void sum_initial_state_gradient(Chunks chunks, const Tensor& d_output, const Tensor& d_initial_state) {
    for (auto chunk = chunks.rbegin(); chunk != chunks.rend(); ++chunk) {
      load_key_like(inputs_.query, *chunk, nullptr);
      load_value_like(d_output, Activation::none, *chunk, nullptr);
      add_to_state(*chunk, decay_.from_start(), chunk != chunks.rbegin());
    }
    store_state(d_initial_state);
  }

  // O += diag(decay^1 ... decay^m) Q S
  void add_initial_state(Chunks chunks, const LinearAttentionOutputs& outputs) {
    load_state(inputs_.initial_state);
    const HeadRows<T> output(outputs.output, row_, head_);
    for (const Chunk& chunk : chunks) {
      load_key_like(inputs_.query, chunk, nullptr);
      multiply(SmallProduct<T>{
          .rows = chunk.length,
          .columns = shape_.value_stride,
          .scaled = {work_.key, shape_.key_stride, 1, work_.state, shape_.value_stride, shape_.state_width},
          .row_scale = decay_.from_start(),
          .c = work_.d_value,
          .c_row_stride = shape_.value_stride});
      T* squares = nullptr;
      if (outputs.square_sums)
        squares = outputs.square_sums.as<T>() + (row_ * shape_.length + chunk.begin) * shape_.heads + head_;
      add_rows(work_.d_value, shape_.value_stride, chunk.length, shape_.value_width, output.at(chunk.begin),
               output.stride, squares, shape_.heads);
      decay_state(chunk);
    }
  }

  // dK += b V dS^T, dV += b K dS, b = diag(decay^(m-1) ... decay^0)
  void add_final_state_gradient(Chunks chunks, const LinearAttentionGradients& gradients, double* d_theta) {
    load_state(gradients.d_final_state);
    const HeadRows<T> d_key(gradients.d_key, row_, head_), d_value(gradients.d_value, row_, head_);
    for (auto chunk = chunks.rbegin(); chunk != chunks.rend(); ++chunk) {
      load_key_like(inputs_.key, *chunk, work_.key_derivative);
      load_value_like(inputs_.value, inputs_.value_activation, *chunk, work_.value_derivative);
      transpose(work_.state, shape_.value_stride, shape_.state_width, shape_.value_width, work_.state_transposed,
                shape_.key_stride);
      const T* const weights = decay_.to_end(chunk->length);
      multiply(SmallProduct<T>{.rows = chunk->length,
                               .columns = shape_.key_stride,
                               .scaled = {work_.value, shape_.value_stride, 1, work_.state_transposed,
                                          shape_.key_stride, shape_.value_width},
                               .row_scale = weights,
                               .c = work_.d_key,
                               .c_row_stride = shape_.key_stride});
      multiply(SmallProduct<T>{
          .rows = chunk->length,
          .columns = shape_.value_stride,
          .scaled = {work_.key, shape_.key_stride, 1, work_.state, shape_.value_stride, shape_.state_width},
          .row_scale = weights,
          .c = work_.d_value,
          .c_row_stride = shape_.value_stride});
      if (inputs_.theta)
        lrpe_backward(work_.d_key, shape_.key_stride, work_.activated, work_.tables.cosines, work_.tables.sines,
                      positions(*chunk), inputs_.positions.stride(1), chunk->length, shape_.key_width, d_theta);
      add_gradient(work_.d_key, shape_.key_stride, work_.key_derivative, narrow_stride_, chunk->length,
                   shape_.key_width, d_key.at(chunk->begin), d_key.stride);
      add_gradient(work_.d_value, shape_.value_stride, work_.value_derivative, shape_.value_stride, chunk->length,
                   shape_.value_width, d_value.at(chunk->begin), d_value.stride);
      decay_state(*chunk);
    }
  }

 private:
  std::int64_t state_offset() const { return (row_ * shape_.heads + head_) * shape_.state_width * shape_.value_width; }

  const std::int64_t* positions(const Chunk& chunk) const {
    const Tensor& all = inputs_.positions;
    return all.as<std::int64_t>() + row_ * all.stride(0) + chunk.begin * all.stride(1);
  }

  void load_key_like(const Tensor& x, const Chunk& chunk, T* derivative) {
    const HeadRows<T> rows(x, row_, head_);
    load_rows(inputs_.query_key_activation, rows.at(chunk.begin), rows.stride, chunk.length, shape_.key_width,
              inputs_.theta ? work_.activated : work_.key, derivative, narrow_stride_);
    if (!inputs_.theta) return;
    lrpe_tables(positions(chunk), inputs_.positions.stride(1), inputs_.theta.as<double>() + head_ * shape_.key_width,
                chunk.length, shape_.key_width, work_.tables.angles, work_.tables.cosines, work_.tables.sines);
    lrpe_expand(work_.activated, shape_.key_width, work_.tables.cosines, work_.tables.sines, chunk.length,
                shape_.key_width, work_.key, shape_.key_stride);
  }

  void load_value_like(const Tensor& x, Activation activation, const Chunk& chunk, T* derivative) {
    const HeadRows<T> rows(x, row_, head_);
    load_rows(activation, rows.at(chunk.begin), rows.stride, chunk.length, shape_.value_width, work_.value, derivative,
              shape_.value_stride);
  }

  void add_to_state(const Chunk& chunk, const T* weights, bool has_state) {
    scale_rows(work_.key, shape_.key_stride, chunk.length, shape_.state_width, weights);
    multiply(SmallProduct<T>{.rows = shape_.state_width,
                             .columns = shape_.value_stride,
                             .plain = {work_.key, 1, shape_.key_stride, work_.value, shape_.value_stride, chunk.length},
                             .carry = has_state ? work_.state : nullptr,
                             .carry_row_stride = shape_.value_stride,
                             .carry_scale = decay_.power(chunk.length),
                             .c = work_.state,
                             .c_row_stride = shape_.value_stride});
  }

  void decay_state(const Chunk& chunk) {
    const T factor = decay_.power(chunk.length);
    for (std::int64_t i = 0; i < shape_.state_width * shape_.value_stride; ++i) work_.state[i] *= factor;
  }

  void load_state(const Tensor& states) {
    load_rows(Activation::none, states.as<T>() + state_offset(), shape_.value_width, shape_.state_width,
              shape_.value_width, work_.state, static_cast<T*>(nullptr), shape_.value_stride);
  }

  void store_state(const Tensor& states) {
    T* const to = states.as<T>() + state_offset();
    for (std::int64_t i = 0; i < shape_.state_width; ++i)
      std::memcpy(to + i * shape_.value_width, work_.state + i * shape_.value_stride, shape_.value_width * sizeof(T));
  }

  const AttentionShape& shape_;
  const LinearAttentionInputs& inputs_;
  const Workspace<T>& work_;
  std::int64_t row_, head_;
  std::int64_t narrow_stride_;  // of activated keys and their derivatives
  DecayTable<T> decay_;
};

// Calls f(head, its chunks, its number among all heads of all rows) for each head of each row.
template <class F>
void for_each_head(const Execution& execution, const LinearAttentionInputs& inputs, F&& f) {
  const AttentionShape shape(inputs);
  const auto chunks = cut_into_chunks(inputs.segments, shape.batch, shape.length);
  const std::int64_t tasks = shape.batch * shape.heads;
  const int threads = attention_threads(shape);
  dispatch_fp32_fp64(inputs.key.dtype(), [&]<class T>(T) {
    const std::int64_t bytes = Workspace<T>(shape, nullptr).bytes;
    Arena::Frame frame(*execution.scratch);
    auto* const memory = execution.scratch->take(DType::uint8, {threads, bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
#pragma omp parallel num_threads(threads)
    {
      // The padding of every matrix must be finite.
      std::uint8_t* const own = memory + omp_get_thread_num() * bytes;
      std::memset(own, 0, bytes);
      const Workspace<T> work(shape, own);
#pragma omp for schedule(dynamic)
      for (std::int64_t task = 0; task < tasks; ++task) {
        const std::int64_t row = task / shape.heads;
        HeadStates<T> head(shape, inputs, work, row, task % shape.heads);
        f(head, chunks[row], task);
      }
    }
  });
}

}  // namespace

void linear_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                  const Tensor& final_state, const Tensor&) {
  for_each_head(execution, inputs, [&](auto& head, const std::vector<Chunk>& chunks, std::int64_t) {
    head.sum_final_state(last_segment(chunks), final_state);
  });
}

void linear_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                             const Tensor& d_output, const Tensor& d_initial_state, const Tensor&) {
  for_each_head(execution, inputs, [&](auto& head, const std::vector<Chunk>& chunks, std::int64_t) {
    head.sum_initial_state_gradient(first_segment(chunks), d_output, d_initial_state);
  });
}

void linear_attention_add_initial_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                        const LinearAttentionOutputs& outputs) {
  for_each_head(execution, inputs, [&](auto& head, const std::vector<Chunk>& chunks, std::int64_t) {
    head.add_initial_state(first_segment(chunks), outputs);
  });
}

void linear_attention_add_final_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                               const LinearAttentionGradients& gradients) {
  Arena::Frame frame(*execution.scratch);
  const AttentionShape shape(inputs);
  double* shares = nullptr;
  if (inputs.theta) {
    shares = execution.scratch->take(DType::fp64, {shape.batch * shape.heads, shape.key_width}).as<double>();
    if (!execution.plans()) std::fill_n(shares, shape.batch * shape.heads * shape.key_width, 0.0);
  }
  for_each_head(execution, inputs, [&](auto& head, const std::vector<Chunk>& chunks, std::int64_t task) {
    head.add_final_state_gradient(last_segment(chunks), gradients,
                                  shares == nullptr ? nullptr : shares + task * shape.key_width);
  });
  if (inputs.theta && !execution.plans()) add_theta_gradients(shape, shares, gradients.d_theta.as<double>());
}

void combine_slice_states(const Execution&, const SliceStates& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out) {
  const std::int64_t batch = out.size(0), heads = out.size(1), elements = out.size(2) * out.size(3);
  const std::int64_t* const bounds = slices.bounds.as<std::int64_t>();
  const auto count = static_cast<int>(slices.states.size(0));
  const bool before = side == SliceSide::before;
  dispatch_fp32_fp64(out.dtype(), [&]<class T>(T) {
#pragma omp parallel for
    for (std::int64_t task = 0; task < batch * heads; ++task) {
      T* const sum = out.as<T>() + task * elements;
      std::fill_n(sum, elements, T(0));
      const double slope = slices.slope.as<double>()[task % heads];
      for (int i = before ? 0 : slices.slice + 1; i < (before ? slices.slice : count); ++i) {
        const std::int64_t distance =
            before ? bounds[slices.slice] - bounds[i + 1] : bounds[i] - bounds[slices.slice + 1];
        if (distance >= reach.as<std::int64_t>()[task / heads]) continue;
        add_scaled(slices.states.as<T>() + (i * batch * heads + task) * elements,
                   static_cast<T>(std::exp(-slope * static_cast<double>(distance))), elements, sum);
      }
    }
  });
}

}  // namespace fulmen::cpu
