// Recurrent linear attention: one token, one pass over the state.
#include <cmath>

#include "kernels/cpu/linear_attention_chunk.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"
#include "kernels/linear_attention.h"

namespace fulmen::cpu {
namespace {

// state [keys, values] = decay * state + key^T value; output [values] = query state.
template <class T>
FULMEN_VECTORIZED void update_and_read(T* state, T decay, const T* query, const T* key, const T* value,
                                       std::int64_t keys, std::int64_t values, T* output) {
  for (std::int64_t j = 0; j < values; ++j) output[j] = 0;
  for (std::int64_t i = 0; i < keys; ++i) {
    const T k = key[i], q = query[i];
    T* const row = state + i * values;
#pragma omp simd
    for (std::int64_t j = 0; j < values; ++j) {
      row[j] = decay * row[j] + k * value[j];
      output[j] += q * row[j];
    }
  }
}

template <class T>
FULMEN_VECTORIZED T sum_of_squares(const T* x, std::int64_t width) {
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < width; ++j) squares += x[j] * x[j];
  return squares;
}

// A head's activated query, key and value.
template <class T>
struct Token {
  Token(const AttentionShape& shape, bool lrpe, void* memory) {
    Carver<T> carver(memory);
    query = carver.take(shape.state_width), key = carver.take(shape.state_width);
    value = carver.take(shape.value_width);
    if (lrpe) {
      activated = carver.take(shape.key_width);
      tables.angles = carver.template take<double>(shape.key_width);
      tables.cosines = carver.take(shape.key_width), tables.sines = carver.take(shape.key_width);
    }
    bytes = carver.bytes();
  }

  T *query, *key, *value, *activated = nullptr;
  LrpeScratch<T> tables;
  std::int64_t bytes;
};

template <class T>
void load_key_like(const AttentionShape& shape, const LinearAttentionInputs& inputs, const Token<T>& token,
                   const HeadRows<T>& from, T* to) {
  T* const narrow = inputs.theta ? token.activated : to;
  load_rows(inputs.query_key_activation, from.data, std::int64_t{0}, 1, shape.key_width, narrow,
            static_cast<T*>(nullptr), std::int64_t{0});
  if (inputs.theta)
    lrpe_expand(narrow, std::int64_t{0}, token.tables.cosines, token.tables.sines, 1, shape.key_width, to,
                std::int64_t{0});
}

template <class T>
void step_head(const AttentionShape& shape, const LinearAttentionInputs& inputs, const Tensor& state,
               const LinearAttentionOutputs& outputs, const Token<T>& token, std::int64_t row, std::int64_t head) {
  if (inputs.theta)
    lrpe_tables(inputs.positions.as<std::int64_t>() + row * inputs.positions.stride(0), std::int64_t{0},
                inputs.theta.as<double>() + head * shape.key_width, 1, shape.key_width, token.tables.angles,
                token.tables.cosines, token.tables.sines);
  load_key_like(shape, inputs, token, HeadRows<T>(inputs.query, row, head), token.query);
  load_key_like(shape, inputs, token, HeadRows<T>(inputs.key, row, head), token.key);
  load_rows(inputs.value_activation, HeadRows<T>(inputs.value, row, head).data, std::int64_t{0}, 1, shape.value_width,
            token.value, static_cast<T*>(nullptr), std::int64_t{0});
  T* const output = HeadRows<T>(outputs.output, row, head).data;
  const std::int64_t index = row * shape.heads + head;
  update_and_read(state.as<T>() + index * shape.state_width * shape.value_width,
                  static_cast<T>(std::exp(-inputs.slope.as<double>()[head])), token.query, token.key, token.value,
                  shape.state_width, shape.value_width, output);
  if (outputs.square_sums) outputs.square_sums.as<T>()[index] = sum_of_squares(output, shape.value_width);
}

}  // namespace

void linear_attention_step(const Execution& execution, const LinearAttentionInputs& inputs, const Tensor& state,
                           const LinearAttentionOutputs& outputs) {
  const AttentionShape shape(inputs);
  const std::int64_t tasks = shape.batch * shape.heads;
  dispatch_fp32_fp64(inputs.query.dtype(), [&]<class T>(T) {
    const bool lrpe = static_cast<bool>(inputs.theta);
    const std::int64_t bytes = Token<T>(shape, lrpe, nullptr).bytes;
    Arena::Frame frame(*execution.scratch);
    auto* const memory =
        execution.scratch->take(DType::uint8, {omp_get_max_threads(), bytes}).template as<std::uint8_t>();
    if (execution.plans()) return;
    parallel_rows(tasks, shape.state_width * shape.value_width, [&](std::int64_t first, std::int64_t last) {
      const Token<T> token(shape, lrpe, memory + omp_get_thread_num() * bytes);
      for (std::int64_t task = first; task < last; ++task)
        step_head(shape, inputs, state, outputs, token, task / shape.heads, task % shape.heads);
    });
  });
}

}  // namespace fulmen::cpu
