// Argument checks and dispatch of softmax attention.
#include "kernels/softmax_attention.h"

#include "kernels/cuda/softmax_attention.h"
#include "kernels/dispatch.h"

namespace fulmen {
namespace {

// [batch, length, heads, width], unit inner stride.
void check_heads(const Tensor& x, DType dtype, const Shape& shape, const char* name) {
  check_dtype(x, dtype, name);
  check_shape(x, shape, name);
  check_unit_inner_stride(x, name);
}

void check_contiguous(const Tensor& x, DType dtype, const Shape& shape, const char* name) {
  check_dtype(x, dtype, name);
  check_shape(x, shape, name);
  FULMEN_CHECK(x.is_contiguous(), "{} is not contiguous", name);
}

void check_inputs(const SoftmaxAttentionInputs& inputs) {
  const Tensor &query = inputs.query, &key = inputs.key, &value = inputs.value;
  FULMEN_CHECK(query.rank() == 4 && key.rank() == 4 && value.rank() == 4, "query is {}, key is {}, value is {}",
               query.describe(), key.describe(), value.describe());
  const DType dtype = query.dtype();
  const std::int64_t batch = query.size(0), keys = key.size(1), kv_heads = key.size(2);
  FULMEN_CHECK(query.elements() > 0 && key.elements() > 0 && value.elements() > 0 && query.size(2) % kv_heads == 0,
               "query is {}, key is {}, value is {}", query.describe(), key.describe(), value.describe());
  check_heads(query, dtype, query.shape(), "query");
  check_heads(key, dtype, {batch, keys, kv_heads, query.size(3)}, "key");
  check_heads(value, dtype, {batch, keys, kv_heads, value.size(3)}, "value");
}

void check_masked_inputs(const SoftmaxAttentionInputs& inputs) {
  check_inputs(inputs);
  if (inputs.sees_all) return;
  const std::int64_t batch = inputs.query.size(0), length = inputs.query.size(1), keys = inputs.key.size(1);
  FULMEN_CHECK(inputs.query_positions.is_null() == inputs.key_positions.is_null(),
               "positions of queries and of keys belong together");
  if (inputs.query_positions) {
    check_contiguous(inputs.query_positions, DType::int64, {batch, length}, "query_positions");
    check_contiguous(inputs.key_positions, DType::int64, {batch, keys}, "key_positions");
  } else {
    FULMEN_CHECK(length == keys, "{} queries and {} keys a row, but no positions", length, keys);
  }
  if (inputs.first_visible) check_contiguous(inputs.first_visible, DType::int64, {batch, length}, "first_visible");
}

Shape output_shape(const SoftmaxAttentionInputs& inputs) {
  return {inputs.query.size(0), inputs.query.size(1), inputs.query.size(2), inputs.value.size(3)};
}

void check_log_sum_exp(const Tensor& x, const Shape& heads, DType dtype, const char* name) {
  check_contiguous(x, accumulation_dtype(dtype), {heads[0], heads[2], heads[1]}, name);
}

// The operations of `products` matrix products over the causal half of the pairs.
double operations(const SoftmaxAttentionInputs& inputs, double of_key_width, double of_value_width) {
  const auto pairs = static_cast<double>(inputs.query.size(0) * inputs.query.size(1) * inputs.query.size(2)) *
                     static_cast<double>(inputs.key.size(1)) / (inputs.sees_all ? 1.0 : 2.0);
  return 2.0 * pairs *
         (of_key_width * static_cast<double>(inputs.query.size(3)) +
          of_value_width * static_cast<double>(inputs.value.size(3)));
}

}  // namespace

void document_starts(const Execution& execution, const Tensor& segments, const Tensor& positions,
                     const Tensor& tokens_before, const Tensor& first_visible) {
  FULMEN_CHECK(positions.rank() == 2, "positions is {}, expected [batch, length]", positions.describe());
  const std::int64_t batch = positions.size(0), length = positions.size(1);
  check_contiguous(positions, DType::int64, positions.shape(), "positions");
  check_contiguous(first_visible, DType::int64, positions.shape(), "first_visible");
  FULMEN_CHECK(segments.rank() == 1 && segments.size(0) >= 2, "segments is {}", segments.describe());
  check_vector(segments, DType::int64, segments.size(0), "segments");
  if (tokens_before) {
    const std::int64_t pieces = tokens_before.rank() == 2 ? tokens_before.size(1) : 1;
    FULMEN_CHECK(tokens_before.elements() == batch * pieces && pieces > 0 && length % pieces == 0,
                 "tokens_before is {}, positions is {}", tokens_before.describe(), positions.describe());
    check_contiguous(tokens_before, DType::int64, tokens_before.shape(), "tokens_before");
  }
  if (positions.elements() == 0) return;
  run_on_device(execution, {"document starts", 0.0, traffic({positions, first_visible})}, backends::document_starts,
                segments, positions, tokens_before, first_visible);
}

void softmax_attention_forward(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor& output,
                               const Tensor& log_sum_exp) {
  check_masked_inputs(inputs);
  check_heads(output, inputs.query.dtype(), output_shape(inputs), "output");
  check_log_sum_exp(log_sum_exp, output.shape(), inputs.query.dtype(), "log_sum_exp");
  run_on_device(execution,
                {"softmax attention forward", operations(inputs, 1, 1),
                 traffic({inputs.query, inputs.key, inputs.value, output}), Scratch::on_cpu},
                backends::softmax_attention_forward, inputs, output, log_sum_exp);
}

void merge_attention(const Execution& execution, const Tensor& block_output, const Tensor& block_log_sum_exp,
                     bool first, const Tensor& output, const Tensor& log_sum_exp) {
  FULMEN_CHECK(block_output.rank() == 4, "block_output is {}", block_output.describe());
  const DType dtype = block_output.dtype();
  check_heads(block_output, dtype, block_output.shape(), "block_output");
  check_heads(output, output.dtype() == dtype ? dtype : accumulation_dtype(dtype), block_output.shape(), "output");
  check_log_sum_exp(block_log_sum_exp, block_output.shape(), dtype, "block_log_sum_exp");
  check_log_sum_exp(log_sum_exp, block_output.shape(), dtype, "log_sum_exp");
  if (output.elements() == 0) return;
  run_on_device(execution, {"merge attention", 0.0, traffic({block_output, output, first ? Tensor() : output})},
                backends::merge_attention, block_output, block_log_sum_exp, first, output, log_sum_exp);
}

void softmax_attention_backward(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                const SoftmaxAttentionGradients& gradients) {
  check_masked_inputs(inputs);
  const DType dtype = inputs.query.dtype(), results = gradients.add ? accumulation_dtype(dtype) : dtype;
  check_heads(gradients.output, dtype, output_shape(inputs), "output");
  check_heads(gradients.d_output, dtype, output_shape(inputs), "d_output");
  check_log_sum_exp(gradients.log_sum_exp, gradients.output.shape(), dtype, "log_sum_exp");
  check_heads(gradients.d_query, results, inputs.query.shape(), "d_query");
  check_heads(gradients.d_key, results, inputs.key.shape(), "d_key");
  check_heads(gradients.d_value, results, inputs.value.shape(), "d_value");
  run_on_device(execution,
                {"softmax attention backward", operations(inputs, 3, 2),
                 traffic({inputs.query, inputs.key, inputs.value, gradients.output, gradients.d_output,
                          gradients.d_query, gradients.d_key, gradients.d_value}),
                 Scratch::on_cpu},
                backends::softmax_attention_backward, inputs, gradients);
}

std::string softmax_attention_paths() {
  if constexpr (gpu::built) return cuda::softmax_attention_paths();
  return "none: not built for GPUs";
}

namespace {

void check_cache(const Tensor& key, const Tensor& value, const SoftmaxAttentionCache& cache) {
  FULMEN_CHECK(cache.keys.rank() == 4, "the cache of keys is {}", cache.keys.describe());
  const Shape shape = {key.size(0), key.size(2), cache.keys.size(2)};
  check_contiguous(cache.keys, key.dtype(), {shape[0], shape[1], shape[2], key.size(3)}, "the cache of keys");
  check_contiguous(cache.values, key.dtype(), {shape[0], shape[1], shape[2], value.size(3)}, "the cache of values");
  check_vector(cache.lengths, DType::int64, key.size(0), "lengths");
}

}  // namespace

void softmax_attention_append(const Execution& execution, const Tensor& key, const Tensor& value,
                              const SoftmaxAttentionCache& cache) {
  FULMEN_CHECK(key.rank() == 4 && value.rank() == 4, "key is {}, value is {}", key.describe(), value.describe());
  check_heads(key, key.dtype(), key.shape(), "key");
  check_heads(value, key.dtype(), {key.size(0), key.size(1), key.size(2), value.size(3)}, "value");
  check_cache(key, value, cache);
  if (key.elements() == 0) return;
  run_on_device(execution, {"softmax attention append", 0.0, traffic({key, key, value, value})},
                backends::softmax_attention_append, key, value, cache);
}

void softmax_attention_step(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                            const SoftmaxAttentionCache& cache, const Tensor& output) {
  check_inputs(inputs);
  FULMEN_CHECK(inputs.query.size(1) == 1 && inputs.key.size(1) == 1, "a step takes one token, not {} and {}",
               inputs.query.size(1), inputs.key.size(1));
  check_heads(output, inputs.query.dtype(), output_shape(inputs), "output");
  check_cache(inputs.key, inputs.value, cache);
  softmax_attention_append(execution, inputs.key, inputs.value, cache);
  run_on_device(execution, {"softmax attention step", 0.0, traffic({cache.keys, cache.values})},
                backends::softmax_attention_step, inputs, cache, output);
}

}  // namespace fulmen
