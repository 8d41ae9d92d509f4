// The graphs of attention as cuDNN's fused kernels know them. The operations and their order are the flash attention
// patterns of its documentation. Another order of the same mathematics finds no plan.
#include "kernels/cuda/softmax_attention_cudnn.h"

#include <compare>
#include <limits>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "framework/cuda_check.h"
#include "framework/gpu.h"
#include "kernels/cuda/cudnn_graph.h"
#include "kernels/cuda/softmax_attention_plain.h"

namespace fulmen::cuda {
namespace {

using Id = CudnnGraph::Id;

// [batch, length, heads, width] as cuDNN has it: [batch, heads, length, width].
struct HeadsLayout {
  CudnnShape shape, strides;

  explicit HeadsLayout(const Tensor& x)
      : shape{x.size(0), x.size(2), x.size(1), x.size(3)},
        strides{x.stride(0), x.stride(2), x.stride(1), x.stride(3)} {}
  HeadsLayout transposed() const {
    HeadsLayout result = *this;
    std::swap(result.shape[2], result.shape[3]), std::swap(result.strides[2], result.strides[3]);
    return result;
  }
  auto operator<=>(const HeadsLayout&) const = default;
};

// The properties of a call that its plan depends on.
struct PlanKey {
  int device;
  bool backward, sees_all;
  std::vector<HeadsLayout> tensors;

  auto operator<=>(const PlanKey&) const = default;
};

struct AttentionPlan {
  CudnnPlan plan;
  std::vector<Id> tensors;            // in the order in which calls give their addresses
  std::int64_t scratch_elements = 0;  // fp32, of tensors between operations that lie in memory
};

// The handle of a device and its plans. Never destroyed: at exit the driver may be gone before them.
struct DevicePlans {
  std::mutex in_use;
  cudnnHandle_t handle = nullptr;
  std::map<PlanKey, AttentionPlan> plans;
};

DevicePlans& plans_of(int device) {
  static std::mutex mutex;
  static auto& all = *new std::map<int, DevicePlans>;
  const std::lock_guard lock(mutex);
  DevicePlans& plans = all[device];
  if (plans.handle == nullptr) {
    FULMEN_CUDA_CHECK(cudaSetDevice(device));
    check_cudnn(cudnnCreate(&plans.handle), "creating a handle");
  }
  return plans;
}

Id memory(CudnnGraph& graph, const HeadsLayout& layout) {
  return graph.memory(layout.shape, layout.strides, CUDNN_DATA_BFLOAT16);
}

// Scores, with minus the largest float where the key comes after the query.
Id mask_scores(CudnnGraph& graph, Id scores, const CudnnShape& shape, Id lowest) {
  const Id rows = graph.between(shape, CUDNN_DATA_INT32), columns = graph.between(shape, CUDNN_DATA_INT32);
  graph.index(scores, 2, rows);
  graph.index(scores, 3, columns);
  const Id visible = graph.between(shape, CUDNN_DATA_BOOLEAN), masked = graph.between(shape);
  graph.pointwise(CUDNN_POINTWISE_CMP_GE, {rows, columns}, visible, CUDNN_DATA_BOOLEAN);
  graph.pointwise(CUDNN_POINTWISE_BINARY_SELECT, {scores, lowest, visible}, masked);
  return masked;
}

// O = softmax(scale Q K^T) V and L. Addresses: query, key, value, output, log_sum_exp, scale, lowest.
AttentionPlan build_forward(cudnnHandle_t handle, const PlanKey& key) {
  CudnnGraph graph;
  const HeadsLayout &q = key.tensors[0], &k = key.tensors[1], &v = key.tensors[2], &o = key.tensors[3];
  const CudnnShape scores_shape{q.shape[0], q.shape[1], q.shape[2], k.shape[2]};
  const CudnnShape row_shape{q.shape[0], q.shape[1], q.shape[2], 1};
  const Id query = memory(graph, q), keys = memory(graph, k.transposed()), values = memory(graph, v);
  const Id output = memory(graph, o), scale = graph.value(), lowest = key.sees_all ? 0 : graph.value();
  const Id statistics = graph.memory(row_shape, {row_shape[1] * row_shape[2], row_shape[2], 1, 1}, CUDNN_DATA_FLOAT);
  const Id products = graph.between(scores_shape), scaled = graph.between(scores_shape);
  graph.matmul(query, keys, products);
  graph.pointwise(CUDNN_POINTWISE_MUL, {products, scale}, scaled);
  const Id scores = key.sees_all ? scaled : mask_scores(graph, scaled, scores_shape, lowest);
  const CudnnShape row_strides{row_shape[1] * row_shape[2], row_shape[2], 1, 1};
  const Id maximum = graph.between(row_shape, row_strides), sum = graph.between(row_shape, row_strides);
  const Id apart = graph.between(scores_shape), weights = graph.between(scores_shape);
  const Id logarithm = graph.between(row_shape, row_strides);
  const Id shares = graph.between(scores_shape, CUDNN_DATA_BFLOAT16);
  graph.reduce(CUDNN_REDUCE_TENSOR_MAX, scores, maximum);
  graph.pointwise(CUDNN_POINTWISE_SUB, {scores, maximum}, apart);
  graph.pointwise(CUDNN_POINTWISE_EXP, {apart}, weights);
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, weights, sum);
  graph.pointwise(CUDNN_POINTWISE_LOG, {sum}, logarithm);
  graph.pointwise(CUDNN_POINTWISE_ADD, {maximum, logarithm}, statistics);
  graph.pointwise(CUDNN_POINTWISE_DIV, {weights, sum}, shares);
  graph.matmul(shares, values, output);
  AttentionPlan result{graph.build(handle, "attention forward"), {query, keys, values, output, statistics, scale}, 0};
  if (!key.sees_all) result.tensors.push_back(lowest);
  return result;
}

// The product of transposed weights (or gradients of scores) with rows of queries: [batch, kv heads, keys, width]. It
// is summed over the heads that share a kv head.
void multiply_transposed(CudnnGraph& graph, Id matrix, const CudnnShape& scores_shape, Id rows,
                         const HeadsLayout& result, Id to) {
  const std::int64_t queries = scores_shape[2], keys = scores_shape[3];
  const Id transposed = graph.between({scores_shape[0], scores_shape[1], keys, queries},
                                      {scores_shape[1] * queries * keys, queries * keys, 1, keys}, CUDNN_DATA_BFLOAT16);
  graph.reshape(matrix, transposed);
  if (result.shape[1] == scores_shape[1]) return graph.matmul(transposed, rows, to);
  const Id of_heads = graph.between({scores_shape[0], scores_shape[1], keys, result.shape[3]}, CUDNN_DATA_BFLOAT16);
  graph.matmul(transposed, rows, of_heads);
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, of_heads, to);
}

// Addresses: query, key, value, output, d_output, d_query, d_key, d_value, log_sum_exp, D, the sum of d_query, scale,
// one, lowest.
AttentionPlan build_backward(cudnnHandle_t handle, const PlanKey& key) {
  CudnnGraph graph;
  const HeadsLayout &q = key.tensors[0], &k = key.tensors[1], &v = key.tensors[2], &o = key.tensors[3];
  const HeadsLayout &d_o = key.tensors[4], &d_q = key.tensors[5], &d_k = key.tensors[6], &d_v = key.tensors[7];
  const CudnnShape scores_shape{q.shape[0], q.shape[1], q.shape[2], k.shape[2]};
  const CudnnShape row_shape{q.shape[0], q.shape[1], q.shape[2], 1};
  const CudnnShape row_strides{row_shape[1] * row_shape[2], row_shape[2], 1, 1};
  const Id query = memory(graph, q), keys = memory(graph, k.transposed()), values = memory(graph, v.transposed());
  const Id output = memory(graph, o), d_output = memory(graph, d_o), d_query = memory(graph, d_q);
  const Id d_keys = memory(graph, d_k), d_values = memory(graph, d_v);
  const Id statistics = graph.memory(row_shape, row_strides, CUDNN_DATA_FLOAT);
  const Id delta = graph.memory(row_shape, row_strides, CUDNN_DATA_FLOAT);
  const Id query_sum = graph.memory(
      q.shape, {q.shape[1] * q.shape[2] * q.shape[3], q.shape[2] * q.shape[3], q.shape[3], 1}, CUDNN_DATA_FLOAT);
  const Id scale = graph.value(), one = graph.value(), lowest = key.sees_all ? 0 : graph.value();

  const std::int64_t heads = o.shape[1], length = o.shape[2], width = o.shape[3];
  const Id products_of_outputs = graph.between(o.shape, {heads * length * width, length * width, heads * width, 1});
  const Id dots = graph.between(row_shape, row_strides);
  graph.pointwise(CUDNN_POINTWISE_MUL, {d_output, output}, products_of_outputs);
  graph.reduce(CUDNN_REDUCE_TENSOR_ADD, products_of_outputs, dots);
  graph.pointwise(CUDNN_POINTWISE_MUL, {dots, one}, delta);

  const Id products = graph.between(scores_shape), scaled = graph.between(scores_shape);
  const Id apart = graph.between(scores_shape), weights = graph.between(scores_shape);
  graph.matmul(query, keys, products);
  graph.pointwise(CUDNN_POINTWISE_MUL, {products, scale}, scaled);
  graph.pointwise(CUDNN_POINTWISE_SUB, {scaled, statistics}, apart);
  graph.pointwise(CUDNN_POINTWISE_EXP, {key.sees_all ? apart : mask_scores(graph, apart, scores_shape, lowest)},
                  weights);
  multiply_transposed(graph, weights, scores_shape, d_output, d_v, d_values);

  const Id d_weights = graph.between(scores_shape), centred = graph.between(scores_shape);
  const Id weighted = graph.between(scores_shape), d_scores = graph.between(scores_shape);
  graph.matmul(d_output, values, d_weights);
  graph.pointwise(CUDNN_POINTWISE_SUB, {d_weights, delta}, centred);
  graph.pointwise(CUDNN_POINTWISE_MUL, {centred, weights}, weighted);
  graph.pointwise(CUDNN_POINTWISE_MUL, {weighted, scale}, d_scores);
  multiply_transposed(graph, d_scores, scores_shape, query, d_k, d_keys);

  const Id key_rows = graph.between(k.shape, k.strides);
  graph.reshape(keys, key_rows);
  graph.matmul(d_scores, key_rows, query_sum);
  graph.pointwise(CUDNN_POINTWISE_IDENTITY, {query_sum}, d_query);
  AttentionPlan result{
      graph.build(handle, "attention backward"),
      {query, keys, values, output, d_output, d_query, d_keys, d_values, statistics, delta, query_sum, scale, one},
      q.shape[0] * q.shape[1] * q.shape[2] * (q.shape[3] + 1)};
  if (!key.sees_all) result.tensors.push_back(lowest);
  return result;
}

// The plan of a call, made where there is none yet.
const AttentionPlan& plan_for(DevicePlans& plans, const PlanKey& key) {
  const auto found = plans.plans.find(key);
  if (found != plans.plans.end()) return found->second;
  return plans.plans.emplace(key, key.backward ? build_backward(plans.handle, key) : build_forward(plans.handle, key))
      .first->second;
}

void run_plan(const Execution& execution, DevicePlans& plans, const AttentionPlan& plan,
              std::span<void* const> addresses) {
  check_cudnn(cudnnSetStream(plans.handle, static_cast<cudaStream_t>(execution.stream.handle)), "setting the stream");
  const Arena::Frame frame(*execution.scratch);
  const std::int64_t bytes = plan.plan.workspace_bytes();
  const Tensor workspace = bytes > 0 ? execution.scratch->take(DType::uint8, {bytes}) : Tensor();
  plan.plan.run(plans.handle, plan.tensors, addresses.first(plan.tensors.size()), workspace.data());
}

bool aligned(const Tensor& x) {
  if (reinterpret_cast<std::uintptr_t>(x.data()) % 16 != 0 || x.stride(3) != 1) return false;
  for (int d = 0; d < 3; ++d)
    if (x.stride(d) % 8 != 0) return false;
  return true;
}

bool takes(const Execution& execution, const SoftmaxAttentionInputs& inputs, std::initializer_list<Tensor> others) {
  const std::int64_t key_width = inputs.query.size(3), value_width = inputs.value.size(3);
  const int major = gpu::properties(execution.device.index).major;
  const std::int64_t widest = major == 9 ? 256 : 128;
  if (execution.deterministic || major < 8 || inputs.query.dtype() != DType::bf16) return false;
  if (!inputs.sees_all && (inputs.query_positions || inputs.first_visible)) return false;
  if (key_width % 8 != 0 || value_width % 8 != 0 || key_width > widest || value_width > widest) return false;
  if (inputs.query.size(1) == 1 || inputs.key.size(1) == 1) return false;
  for (const Tensor& x : {inputs.query, inputs.key, inputs.value})
    if (!aligned(x)) return false;
  for (const Tensor& x : others)
    if (!aligned(x)) return false;
  return true;
}

}  // namespace

bool cudnn_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs, const Tensor& output) {
  return takes(execution, inputs, {output});
}

bool cudnn_takes(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                 const SoftmaxAttentionGradients& gradients) {
  if (gradients.add) return takes(execution, inputs, {gradients.output, gradients.d_output});
  return takes(execution, inputs,
               {gradients.output, gradients.d_output, gradients.d_query, gradients.d_key, gradients.d_value});
}

void softmax_attention_forward_cudnn(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                     const Tensor& output, const Tensor& log_sum_exp) {
  DevicePlans& plans = plans_of(execution.device.index);
  const std::lock_guard lock(plans.in_use);
  PlanKey key{execution.device.index, false, inputs.sees_all, {}};
  for (const Tensor& x : {inputs.query, inputs.key, inputs.value, output}) key.tensors.emplace_back(x);
  auto scale = static_cast<float>(inputs.scale), lowest = std::numeric_limits<float>::lowest();
  void* const addresses[] = {
      inputs.query.data(), inputs.key.data(), inputs.value.data(), output.data(), log_sum_exp.data(), &scale, &lowest};
  run_plan(execution, plans, plan_for(plans, key), addresses);
}

void softmax_attention_backward_cudnn(const Execution& execution, const SoftmaxAttentionInputs& inputs,
                                      const SoftmaxAttentionGradients& gradients) {
  DevicePlans& plans = plans_of(execution.device.index);
  const std::lock_guard lock(plans.in_use);
  const Arena::Frame frame(*execution.scratch);
  // cuDNN cannot add to a tensor: its results come first, then their sum.
  const auto result = [&](const Tensor& x) {
    return gradients.add ? execution.scratch->take(DType::bf16, x.shape()) : x;
  };
  const Tensor d_query = result(gradients.d_query), d_key = result(gradients.d_key);
  const Tensor d_value = result(gradients.d_value);
  PlanKey key{execution.device.index, true, inputs.sees_all, {}};
  for (const Tensor& x :
       {inputs.query, inputs.key, inputs.value, gradients.output, gradients.d_output, d_query, d_key, d_value})
    key.tensors.emplace_back(x);
  const AttentionPlan& plan = plan_for(plans, key);
  auto* const scratch = execution.scratch->take(DType::fp32, {plan.scratch_elements}).as<float>();
  const std::int64_t rows = inputs.query.size(0) * inputs.query.size(1) * inputs.query.size(2);
  auto scale = static_cast<float>(inputs.scale), one = 1.0f, lowest = std::numeric_limits<float>::lowest();
  // The rows' D behind the sums of d_query, which want the alignment.
  void* const addresses[] = {inputs.query.data(),
                             inputs.key.data(),
                             inputs.value.data(),
                             gradients.output.data(),
                             gradients.d_output.data(),
                             d_query.data(),
                             d_key.data(),
                             d_value.data(),
                             gradients.log_sum_exp.data(),
                             scratch + rows * inputs.query.size(3),
                             scratch,
                             &scale,
                             &one,
                             &lowest};
  run_plan(execution, plans, plan, addresses);
  if (!gradients.add) return;
  add_narrow_heads(execution, d_query, gradients.d_query);
  add_narrow_heads(execution, d_key, gradients.d_key);
  add_narrow_heads(execution, d_value, gradients.d_value);
}

}  // namespace fulmen::cuda
