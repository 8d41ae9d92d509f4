// Random problems for the linear attention tests, as the oracle and as the kernels take them.
#pragma once

#include <algorithm>

#include "kernels/linear_attention.h"
#include "kernels/reference/linear_attention.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen::testing {

// Where q, k and v lie.
enum class Layout : std::uint8_t {
  separate,  // each contiguous
  ragged,    // slices of one [tokens, ...] buffer whose rows are no multiple of anything
  aligned,   // slices of one buffer; where the widths are multiples of 8, so are rows and slices
};

struct AttentionCase {
  std::int64_t batch = 1, length = 1, heads = 1, key_width = 1, value_width = 1;
  double slope = 0.1;  // of the first head; the others' are spread below it
  bool lrpe = false;
  bool initial_state = false;
  bool documents = false;
  Layout layout = Layout::ragged;
  Activation query_key_activation = Activation::silu;
  Activation value_activation = Activation::none;

  std::string describe() const {
    return fmt::format(
        "batch {} length {} heads {} key {} value {} slope {} lrpe {} initial {} documents {} layout {} "
        "activations {} {}",
        batch, length, heads, key_width, value_width, slope, lrpe, initial_state, documents, static_cast<int>(layout),
        static_cast<int>(query_key_activation), static_cast<int>(value_activation));
  }
};

// Document starts: every multiple of length, and between them documents of all lengths, 1 included.
inline std::vector<std::int64_t> random_segments(std::int64_t batch, std::int64_t length, bool documents,
                                                 Random& random) {
  std::vector<std::int64_t> offsets;
  for (std::int64_t row = 0; row < batch; ++row) {
    std::int64_t at = 0;
    while (at < length) {
      offsets.push_back(row * length + at);
      if (!documents) break;
      at += random.integer(0, 3) == 0 ? 1 : random.integer(1, std::max<std::int64_t>(1, length));
    }
  }
  offsets.push_back(batch * length);
  return offsets;
}

// Values that `dtype` can hold, so that rounding the inputs is no part of the error.
inline reference::LinearAttentionProblem random_problem(const AttentionCase& c, DType dtype, Random& random) {
  reference::LinearAttentionProblem p;
  p.batch = c.batch, p.length = c.length, p.heads = c.heads, p.key_width = c.key_width, p.value_width = c.value_width;
  p.query_key_activation = c.query_key_activation;
  p.value_activation = c.value_activation;
  const std::int64_t tokens = c.batch * c.length * c.heads;
  p.query = rounded(random.normals(tokens * c.key_width), dtype);
  p.key = rounded(random.normals(tokens * c.key_width), dtype);
  p.value = rounded(random.normals(tokens * c.value_width), dtype);
  for (std::int64_t h = 0; h < c.heads; ++h) p.slope.push_back(c.slope / static_cast<double>(1 + 3 * h));
  if (c.lrpe) {
    for (std::int64_t i = 0; i < c.heads * c.key_width; ++i) p.theta.push_back(std::pow(10.0, random.uniform(-4, 0)));
    for (std::int64_t row = 0; row < c.batch; ++row) {
      const std::int64_t first = random.integer(0, 100);
      for (std::int64_t t = 0; t < c.length; ++t) p.positions.push_back(first + t);
    }
  }
  p.segments = random_segments(c.batch, c.length, c.documents, random);
  if (c.initial_state)
    p.initial_state =
        rounded(random.normals(c.batch * c.heads * p.state_width() * c.value_width), accumulation_dtype(dtype));
  return p;
}

// A tensor [batch, length, heads, width] that is a slice of rows of `row_width` elements.
inline Tensor heads_of(const Tensor& rows, std::int64_t begin, std::int64_t length, std::int64_t heads,
                       std::int64_t width) {
  return rows.slice(1, begin, begin + heads * width).split_dimension(1, width).split_dimension(0, length);
}

// Query-like, key-like and value-like tensors, in one buffer or in three.
struct Triple {
  Tensor query, key, value;
};

// Elements of a row other than the tensors', and where the first tensor begins.
inline std::int64_t row_padding(Layout layout) {
  return layout == Layout::aligned ? 8 : layout == Layout::ragged ? 5 : 0;
}
inline std::int64_t row_begin(Layout layout) {
  return layout == Layout::aligned ? 8 : layout == Layout::ragged ? 2 : 0;
}

// One tensor [batch, length, heads, width], poisoned.
inline Tensor make_heads(Host& host, const reference::LinearAttentionProblem& p, DType dtype, Layout layout,
                         std::int64_t width) {
  const Tensor rows = host.poisoned(dtype, {p.batch * p.length, p.heads * width + row_padding(layout)});
  return heads_of(rows, row_begin(layout), p.length, p.heads, width);
}

inline Triple make_triple(Host& host, const reference::LinearAttentionProblem& p, DType dtype, Layout layout) {
  if (layout == Layout::separate)
    return {make_heads(host, p, dtype, layout, p.key_width), make_heads(host, p, dtype, layout, p.key_width),
            make_heads(host, p, dtype, layout, p.value_width)};
  const std::int64_t keys = p.heads * p.key_width, values = p.heads * p.value_width;
  const std::int64_t begin = row_begin(layout);
  const Tensor rows = host.poisoned(dtype, {p.batch * p.length, 2 * keys + values + row_padding(layout)});
  return {heads_of(rows, begin, p.length, p.heads, p.key_width),
          heads_of(rows, begin + keys, p.length, p.heads, p.key_width),
          heads_of(rows, begin + 2 * keys, p.length, p.heads, p.value_width)};
}

inline Shape state_shape(const reference::LinearAttentionProblem& p) {
  return {p.batch, p.heads, p.state_width(), p.value_width};
}

inline LinearAttentionInputs make_inputs(Host& host, const reference::LinearAttentionProblem& p, DType dtype,
                                         Layout layout) {
  LinearAttentionInputs inputs;
  const Triple triple = make_triple(host, p, dtype, layout);
  write(triple.query, p.query), write(triple.key, p.key), write(triple.value, p.value);
  inputs.query = triple.query, inputs.key = triple.key, inputs.value = triple.value;
  inputs.query_key_activation = p.query_key_activation;
  inputs.value_activation = p.value_activation;
  inputs.slope = host.tensor(DType::fp64, {p.heads}, p.slope);
  if (!p.theta.empty()) {
    inputs.theta = host.tensor(DType::fp64, {p.heads, p.key_width}, p.theta);
    inputs.positions = host.integers<std::int64_t>({p.batch, p.length}, p.positions);
  }
  inputs.segments = host.integers<std::int64_t>({static_cast<std::int64_t>(p.segments.size())}, p.segments);
  if (!p.initial_state.empty())
    inputs.initial_state = host.tensor(accumulation_dtype(dtype), state_shape(p), p.initial_state);
  return inputs;
}

inline LinearAttentionOutputs make_outputs(Host& host, const reference::LinearAttentionProblem& p, DType dtype,
                                           Layout layout) {
  const DType sums = accumulation_dtype(dtype);
  return {make_heads(host, p, dtype, layout, p.value_width), host.poisoned(sums, {p.batch * p.length, p.heads}),
          host.poisoned(sums, state_shape(p))};
}

// Poisoned room for the states between the pieces of rows; null where rows are not cut.
inline Tensor make_piece_states(Host& host, const LinearAttentionInputs& inputs) {
  const std::int64_t elements = linear_attention_piece_elements(host.execution, size_of(inputs));
  return elements == 0 ? Tensor() : host.poisoned(accumulation_dtype(inputs.key.dtype()), {elements});
}

struct Upstream {
  Values d_output, d_final_state;
};

inline Upstream random_upstream(const reference::LinearAttentionProblem& p, DType dtype, bool final_state,
                                Random& random) {
  Upstream upstream;
  upstream.d_output = rounded(random.normals(p.batch * p.length * p.heads * p.value_width), dtype);
  if (final_state)
    upstream.d_final_state = rounded(random.normals(elements_of(state_shape(p))), accumulation_dtype(dtype));
  return upstream;
}

// Strided outputs, all poisoned but d_theta, which is added to.
inline LinearAttentionGradients make_gradients(Host& host, const reference::LinearAttentionProblem& p, DType dtype,
                                               Layout layout, const Upstream& upstream, const Values& theta_before) {
  LinearAttentionGradients gradients;
  gradients.d_output = make_heads(host, p, dtype, layout, p.value_width);
  write(gradients.d_output, upstream.d_output);
  if (!upstream.d_final_state.empty())
    gradients.d_final_state = host.tensor(accumulation_dtype(dtype), state_shape(p), upstream.d_final_state);
  const Triple triple = make_triple(host, p, dtype, layout);
  gradients.d_query = triple.query, gradients.d_key = triple.key, gradients.d_value = triple.value;
  if (!p.theta.empty()) gradients.d_theta = host.tensor(DType::fp64, {p.heads, p.key_width}, theta_before);
  gradients.d_initial_state = host.poisoned(accumulation_dtype(dtype), state_shape(p));
  return gradients;
}

inline Values sum_of(Values a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}

// Many shapes: ragged lengths, odd widths, every option on and off.
inline std::vector<AttentionCase> attention_cases() {
  std::vector<AttentionCase> cases;
  const std::int64_t lengths[] = {1, 2, 3, 5, 13, 31, 63, 64, 65, 100, 127, 128, 129, 191, 200};
  const std::int64_t widths[] = {1, 3, 16, 64, 96};
  const double slopes[] = {1.0, 0.3, 0.02, 1e-3, 1e-5};
  std::size_t i = 0;
  for (const std::int64_t length : lengths) {
    for (int variant = 0; variant < 4; ++variant, ++i) {
      AttentionCase c;
      c.length = length;
      c.batch = 1 + static_cast<std::int64_t>(i % 3);
      c.heads = 1 + static_cast<std::int64_t>(i % 2);
      c.key_width = widths[i % 5];
      c.value_width = widths[(i / 2) % 5];
      c.slope = slopes[(i / 3) % 5];
      c.lrpe = variant == 1 || variant == 3;
      c.initial_state = variant >= 2;
      c.documents = i % 2 == 1;
      c.layout = static_cast<Layout>(i % 3);
      if (i % 7 == 0) c.query_key_activation = Activation::none;
      if (i % 5 == 0) c.value_activation = Activation::silu;
      if (i % 11 == 0) c.query_key_activation = Activation::sigmoid;
      cases.push_back(c);
    }
  }
  return cases;
}

}  // namespace fulmen::testing
