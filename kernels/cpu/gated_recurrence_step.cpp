// Gated recurrences token by token, and the states between slices of a sequence.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/gated_recurrence_chunk.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vectorize.h"

namespace fulmen::cpu {
namespace {

// The state of one head of one row, and its token.
template <class T>
struct Token {
  T* state;
  const T *query, *key, *value, *log_decay, *bonus;
  T beta, scale;
  T *written, *output;  // [value width]
};

template <class T>
FULMEN_VECTORIZED void step_head(const GatedShape& shape, const Token<T>& t) {
  const std::int64_t values = shape.value_width;
  for (std::int64_t v = 0; v < values; ++v) t.written[v] = t.value[v], t.output[v] = 0;
  for (std::int64_t c = 0; c < shape.key_width; ++c) {
    T* const row = t.state + c * values;
    const T decay = std::exp(t.log_decay[shape.per_channel ? c : 0]), query = t.query[c] * t.scale, key = t.key[c];
    if (shape.bonus)
      for (std::int64_t v = 0; v < values; ++v) t.output[v] += query * (row[v] + t.bonus[c] * key * t.value[v]);
    for (std::int64_t v = 0; v < values; ++v) row[v] *= decay;
    if (shape.delta)
      for (std::int64_t v = 0; v < values; ++v) t.written[v] -= key * row[v];
  }
  if (shape.delta)
    for (std::int64_t v = 0; v < values; ++v) t.written[v] *= t.beta;
  for (std::int64_t c = 0; c < shape.key_width; ++c) {
    T* const row = t.state + c * values;
    const T query = shape.bonus ? T(0) : t.query[c] * t.scale, key = t.key[c];
    for (std::int64_t v = 0; v < values; ++v) {
      row[v] += key * t.written[v];
      t.output[v] += query * row[v];
    }
  }
}

// out = transition (or its transpose) in + own, in the columns of the values. All are [key width, columns].
template <class T>
FULMEN_VECTORIZED void carry(const T* summary, const T* in, std::int64_t keys, std::int64_t values,
                             std::int64_t transition_columns, bool transposed, T* out) {
  const std::int64_t columns = values + transition_columns;
  for (std::int64_t c = 0; c < keys; ++c) {
    for (std::int64_t v = 0; v < values; ++v) out[c * columns + v] = summary[c * columns + v];
    if (transition_columns == 1) {
      for (std::int64_t v = 0; v < values; ++v)
        out[c * columns + v] += summary[c * columns + values] * in[c * columns + v];
      continue;
    }
    for (std::int64_t k = 0; k < keys; ++k) {
      const T factor = transposed ? summary[k * columns + values + c] : summary[c * columns + values + k];
      for (std::int64_t v = 0; v < values; ++v) out[c * columns + v] += factor * in[k * columns + v];
    }
  }
}

}  // namespace

void gated_recurrence_step(const Execution& execution, const GatedRecurrenceInputs& inputs, const Tensor& state,
                           const Tensor& output) {
  const GatedShape shape(inputs);
  const std::int64_t tasks = shape.batch * shape.heads;
  dispatch_fp32_fp64(inputs.key.dtype(), [&]<class T>(T) {
    Arena::Frame frame(*execution.scratch);
    T* const written = execution.scratch->take(inputs.key.dtype(), {tasks, shape.value_width}).template as<T>();
    if (execution.plans()) return;
    parallel_rows(tasks, shape.key_width * shape.value_width, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t task = first; task < last; ++task) {
        const std::int64_t row = task / shape.heads, head = task % shape.heads, key_head = head / shape.group();
        step_head<T>(shape, {state.as<T>() + task * shape.key_width * shape.value_width,
                             HeadRows<T>(inputs.query, row, key_head).data, HeadRows<T>(inputs.key, row, key_head).data,
                             HeadRows<T>(inputs.value, row, head).data,
                             inputs.log_decay.as<T>() + task * (shape.per_channel ? shape.key_width : 1),
                             shape.bonus ? inputs.bonus.as<T>() + head * shape.key_width : nullptr,
                             shape.delta ? inputs.beta.as<T>()[task] : T(1), static_cast<T>(inputs.scale),
                             written + task * shape.value_width, HeadRows<T>(output, row, head).data});
      }
    });
  });
}

void combine_gated_slices(const Execution& execution, const GatedSlices& slices, SliceSide side, const Tensor& reach,
                          const Tensor& out) {
  const std::int64_t heads = out.size(1), keys = out.size(2), columns = out.size(3), values = slices.value_width;
  const std::int64_t tasks = out.size(0) * heads, elements = keys * columns;
  const auto count = static_cast<int>(slices.summaries.size(0));
  const bool before = side == SliceSide::before;
  dispatch_fp32_fp64(out.dtype(), [&]<class T>(T) {
    Arena::Frame frame(*execution.scratch);
    T* const spare = execution.scratch->take(out.dtype(), {tasks, elements}).template as<T>();
    if (execution.plans()) return;
    const std::int64_t* const bounds = slices.bounds.as<std::int64_t>();
    parallel_rows(tasks, elements * (columns - values), [&](std::int64_t first_task, std::int64_t last_task) {
      for (std::int64_t task = first_task; task < last_task; ++task) {
        const auto summary = [&](int i) { return slices.summaries.as<T>() + (i * tasks + task) * elements; };
        T *state = out.as<T>() + task * elements, *next = spare + task * elements;
        std::fill_n(state, elements, T(0));
        const int step = before ? 1 : -1;
        for (int i = before ? 0 : count - 1; i != slices.slice; i += step) {
          const std::int64_t distance =
              before ? bounds[slices.slice] - bounds[i + 1] : bounds[i] - bounds[slices.slice + 1];
          if (distance >= reach.as<std::int64_t>()[task / heads]) continue;
          carry(summary(i), state, keys, values, columns - values, !before, next);
          std::swap(state, next);
        }
        T* const to = out.as<T>() + task * elements;
        const T* const own = summary(slices.slice);
        for (std::int64_t c = 0; c < keys; ++c) {
          if (state != to) std::copy_n(state + c * columns, values, to + c * columns);
          std::copy_n(own + c * columns + values, columns - values, to + c * columns + values);
        }
      }
    });
  });
}

}  // namespace fulmen::cpu
