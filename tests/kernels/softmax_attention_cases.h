// Random problems of softmax attention: the same for the reference and, as tensors, for the kernels.
#pragma once

#include <algorithm>

#include "kernels/reference/softmax_attention.h"
#include "kernels/softmax_attention.h"
#include "tests/kernels/kernel_test.h"

namespace fulmen::testing {

struct SoftmaxSize {
  std::int64_t batch, length, heads, kv_heads, key_width, value_width;
};

// Offsets of random documents in rows of `length`.
inline std::vector<std::int64_t> random_segments(Random& random, std::int64_t batch, std::int64_t length) {
  std::vector<std::int64_t> offsets;
  for (std::int64_t row = 0; row < batch; ++row)
    for (std::int64_t at = 0; at < length; at += random.integer(1, std::max<std::int64_t>(length / 2, 1)))
      offsets.push_back(row * length + at);
  offsets.push_back(batch * length);
  return offsets;
}

// The position of each token's document's first token, where all rows are whole.
inline std::vector<std::int64_t> starts_of(const std::vector<std::int64_t>& segments, std::int64_t length) {
  std::vector<std::int64_t> starts;
  for (std::size_t s = 0; s + 1 < segments.size(); ++s)
    for (std::int64_t at = segments[s]; at < segments[s + 1]; ++at) starts.push_back(segments[s] % length);
  return starts;
}

inline reference::SoftmaxAttentionProblem softmax_problem(Random& random, const SoftmaxSize& size, DType dtype,
                                                          bool documents) {
  reference::SoftmaxAttentionProblem problem{size.batch,    size.length,    size.length,     size.heads,
                                             size.kv_heads, size.key_width, size.value_width};
  problem.scale = 1.0 / std::sqrt(static_cast<double>(size.key_width));
  const std::int64_t tokens = size.batch * size.length;
  const auto values = [&](std::int64_t count) { return rounded(random.normals(count, 1.5), dtype); };
  problem.query = values(tokens * size.heads * size.key_width);
  problem.key = values(tokens * size.kv_heads * size.key_width);
  problem.value = values(tokens * size.kv_heads * size.value_width);
  for (std::int64_t t = 0; t < tokens; ++t) problem.query_positions.push_back(t % size.length);
  problem.key_positions = problem.query_positions;
  problem.first_visible = documents ? starts_of(random_segments(random, size.batch, size.length), size.length)
                                    : std::vector<std::int64_t>(tokens, 0);
  return problem;
}

// A tensor [batch, length, heads, width] whose tokens lie `gap` elements further apart, NaN between.
inline Tensor strided_heads(Host& host, DType dtype, const Shape& shape, std::int64_t gap) {
  const std::int64_t columns = shape[2] * shape[3];
  return host.poisoned(dtype, {shape[0], shape[1], columns + gap})
      .slice(2, gap / 2, gap / 2 + columns)
      .split_dimension(2, shape[3]);
}

// `plain`: without positions, and without first_visible where all of it is 0.
inline SoftmaxAttentionInputs softmax_inputs(Host& host, const reference::SoftmaxAttentionProblem& problem, DType dtype,
                                             std::int64_t gap, bool plain) {
  SoftmaxAttentionInputs inputs;
  const auto heads = [&](std::int64_t length, std::int64_t count, std::int64_t width, const Values& values) {
    const Tensor x = strided_heads(host, dtype, {problem.batch, length, count, width}, gap);
    write(x, values);
    return x;
  };
  inputs.query = heads(problem.length, problem.heads, problem.key_width, problem.query);
  inputs.key = heads(problem.key_length, problem.kv_heads, problem.key_width, problem.key);
  inputs.value = heads(problem.key_length, problem.kv_heads, problem.value_width, problem.value);
  inputs.scale = problem.scale;
  if (!plain) {
    inputs.query_positions = host.integers({problem.batch, problem.length}, problem.query_positions);
    inputs.key_positions = host.integers({problem.batch, problem.key_length}, problem.key_positions);
  }
  if (!plain || *std::max_element(problem.first_visible.begin(), problem.first_visible.end()) > 0)
    inputs.first_visible = host.integers({problem.batch, problem.length}, problem.first_visible);
  return inputs;
}

}  // namespace fulmen::testing
