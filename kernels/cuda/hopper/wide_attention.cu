// Sets up the kernels of linear attention with wide heads: documents, and scratch for states and scores.
#include "kernels/cuda/hopper/wide_attention.h"

#include "kernels/cuda/hopper/device_limits.h"
#include "kernels/cuda/hopper/tensor_map.h"
#include "kernels/cuda/hopper/wide_attention_kernels.cuh"

namespace fulmen::cuda::hopper {

namespace {

// x: the query or the key.
bool takes_kind(const LinearAttentionInputs& inputs, const Tensor& x) {
  const LinearAttentionSize size = size_of(inputs);
  if (!limits(x.device().index).hopper || size.dtype != DType::bf16 || size.lrpe) return false;
  if (size.key_width % 64 != 0 || size.key_width > 256) return false;
  if (size.value_width % 64 != 0 || size.value_width > 512) return false;
  if (size.query_key_activation != Activation::none || inputs.value_activation != Activation::none) return false;
  return size.length < std::int64_t{1} << 30 && size.batch <= 65535 && size.heads <= 65535 && can_be_mapped(x);
}

bool takes_inputs(const LinearAttentionInputs& inputs) {
  return takes_kind(inputs, inputs.query) && can_be_mapped(inputs.key) && can_be_mapped(inputs.value);
}

float* pointer_of(const Tensor& state) { return state ? state.as<float>() : nullptr; }

// Shared by the kernels of one call.
class WideSetup {
 public:
  WideSetup(const Execution& execution, const LinearAttentionInputs& inputs) : execution_(execution) {
    const LinearAttentionSize size = size_of(inputs);
    sweep_.length = static_cast<int>(size.length);
    sweep_.heads = static_cast<int>(size.heads);
    sweep_.slope = inputs.slope.as<double>();
    shape_ = {static_cast<int>(size.batch), sweep_.heads,
              static_cast<int>((size.length + wide_chunk_tokens - 1) / wide_chunk_tokens),
              static_cast<int>(size.key_width), static_cast<int>(size.value_width)};
    FULMEN_CHECK(shape_.count() <= 0x7fffffff, "{} chunks of heads are too many", shape_.count());
    const std::int64_t segments = inputs.segments ? inputs.segments.elements() - 1 : size.batch;
    if (segments == size.batch) return;  // every row is one document
    const Tensor begins = execution.scratch->take(DType::int32, {size.batch * size.length});
    const Tensor ends = execution.scratch->take(DType::int32, {size.batch * size.length});
    launch_documents(inputs.segments.as<std::int64_t>(), segments, size.batch, size.length, begins.as<int>(),
                     ends.as<int>(), stream());
    sweep_.document_begin = begins.as<int>();
    sweep_.document_end = ends.as<int>();
  }

  cudaStream_t stream() const { return static_cast<cudaStream_t>(execution_.stream.handle); }
  const WideShape& shape() const { return shape_; }
  const Sweep& sweep() const { return sweep_; }

  // As the tensor maps of kernels want scratch: one head.
  Tensor take_states() const { return take(shape_.key_width, shape_.value_width); }
  Tensor take_scores() const { return take(wide_chunk_tokens, wide_chunk_tokens); }

  // The sweep over a and b. It starts from `first`, or zero if null, and writes `states`, and `last` unless null.
  void make_states(const Tensor& a, const Tensor& b, bool reverse, const Tensor& first, const Tensor& states,
                   const Tensor& last) const {
    WideStatesArguments arguments{map_heads(a), map_heads(b), {}, !states.is_null(), shape_, sweep_};
    if (states) arguments.states = map_heads(states);
    arguments.sweep.incoming = pointer_of(first);
    arguments.sweep.outgoing = pointer_of(last);
    arguments.sweep.incoming_stride = arguments.sweep.outgoing_stride =
        static_cast<std::int64_t>(shape_.key_width) * shape_.value_width;
    launch_wide_states(arguments, reverse, stream());
  }

  // Between rows and columns, to `direct` and `transposed` or, where null, not.
  ScoresJob scores_job(const Tensor& rows, const Tensor& columns, const Tensor& direct,
                       const Tensor& transposed) const {
    ScoresJob job{map_heads(rows), map_heads(columns), {}, {}, static_cast<int>(rows.size(3) / panel_columns)};
    job.stores_direct = !direct.is_null(), job.stores_transposed = !transposed.is_null();
    if (direct) job.direct = map_heads(direct);
    if (transposed) job.transposed = map_heads(transposed);
    return job;
  }

  // result = diag(f) a b + scores c; `reverse` as in ProductsJob.
  ProductsJob products_job(const Tensor& a, const Tensor& b, const Tensor& scores, const Tensor& c,
                           const Tensor& result, bool b_transposed, bool reverse) const {
    return {map_heads(a),
            map_heads(b),
            map_heads(scores),
            map_heads(c),
            map_heads(result),
            static_cast<int>(a.size(3) / panel_columns),
            static_cast<int>(result.size(3)),
            b_transposed,
            reverse};
  }

  void make_products(const ProductsArguments& arguments) const {
    launch_products(arguments, limits(execution_.device.index).multiprocessors, stream());
  }

 private:
  Tensor take(int rows, int columns) const {
    return execution_.scratch->take(DType::bf16, {shape_.count(), rows, 1, columns});
  }

  const Execution& execution_;
  WideShape shape_;
  Sweep sweep_;
};

}  // namespace

bool takes_wide(const LinearAttentionInputs& inputs, const LinearAttentionOutputs& outputs) {
  return takes_inputs(inputs) && can_be_mapped(outputs.output);
}

bool takes_wide(const LinearAttentionInputs& inputs, const LinearAttentionGradients& gradients) {
  return takes_inputs(inputs) && can_be_mapped(gradients.d_output) && can_be_mapped(gradients.d_query) &&
         can_be_mapped(gradients.d_key) && can_be_mapped(gradients.d_value);
}

bool takes_wide_states(const LinearAttentionInputs& inputs) {
  return takes_kind(inputs, inputs.key) && can_be_mapped(inputs.value);
}

bool takes_wide_state_gradients(const LinearAttentionInputs& inputs, const Tensor& d_output) {
  return takes_kind(inputs, inputs.query) && can_be_mapped(d_output);
}

void wide_attention_forward(const Execution& execution, const LinearAttentionInputs& inputs,
                            const LinearAttentionOutputs& outputs) {
  const Arena::Frame frame(*execution.scratch);
  const WideSetup setup(execution, inputs);
  const Tensor &query = inputs.query, &key = inputs.key, &value = inputs.value;
  const Tensor states = setup.take_states(), scores = setup.take_scores();
  setup.make_states(key, value, false, inputs.initial_state, states, outputs.final_state);
  launch_scores({{setup.scores_job(query, key, scores, Tensor())}, 1, setup.shape(), setup.sweep()}, setup.stream());
  setup.make_products({{setup.products_job(query, states, scores, value, outputs.output, false, false)},
                       1,
                       setup.shape(),
                       setup.sweep()});
  if (outputs.square_sums.is_null()) return;
  const Tensor& x = outputs.output;
  launch_square_sums({static_cast<const __nv_bfloat16*>(x.data()),
                      {x.stride(0), x.stride(1), x.stride(2)},
                      setup.shape().batch,
                      setup.sweep().length,
                      setup.shape().heads,
                      setup.shape().value_width,
                      outputs.square_sums.as<float>()},
                     setup.stream());
}

void wide_attention_backward(const Execution& execution, const LinearAttentionInputs& inputs,
                             const LinearAttentionGradients& gradients) {
  const Arena::Frame frame(*execution.scratch);
  const WideSetup setup(execution, inputs);
  const Tensor &query = inputs.query, &key = inputs.key, &value = inputs.value;
  const Tensor& d_output = gradients.d_output;
  const Tensor states = setup.take_states(), d_states = setup.take_states();
  setup.make_states(key, value, false, inputs.initial_state, states, Tensor());
  setup.make_states(query, d_output, true, gradients.d_final_state, d_states, gradients.d_initial_state);
  const Tensor scores = setup.take_scores();  // of keys and queries
  const Tensor d_scores = setup.take_scores(), d_scores_transposed = setup.take_scores();
  launch_scores({{setup.scores_job(query, key, Tensor(), scores),
                  setup.scores_job(d_output, value, d_scores, d_scores_transposed)},
                 2,
                 setup.shape(),
                 setup.sweep()},
                setup.stream());
  setup.make_products({{setup.products_job(d_output, states, d_scores, key, gradients.d_query, true, false),
                        setup.products_job(value, d_states, d_scores_transposed, query, gradients.d_key, true, true),
                        setup.products_job(key, d_states, scores, d_output, gradients.d_value, false, true)},
                       3,
                       setup.shape(),
                       setup.sweep()});
}

void wide_attention_final_state(const Execution& execution, const LinearAttentionInputs& inputs,
                                const Tensor& final_state) {
  const Arena::Frame frame(*execution.scratch);
  const WideSetup setup(execution, inputs);
  setup.make_states(inputs.key, inputs.value, false, Tensor(), Tensor(), final_state);
}

void wide_attention_initial_state_gradient(const Execution& execution, const LinearAttentionInputs& inputs,
                                           const Tensor& d_output, const Tensor& d_initial_state) {
  const Arena::Frame frame(*execution.scratch);
  const WideSetup setup(execution, inputs);
  setup.make_states(inputs.query, d_output, true, Tensor(), Tensor(), d_initial_state);
}

}  // namespace fulmen::cuda::hopper
