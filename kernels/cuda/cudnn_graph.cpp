// Descriptors, graphs and plans of cuDNN.
#include "kernels/cuda/cudnn_graph.h"

#include <algorithm>

#include <utility>

#include "framework/error.h"

namespace fulmen::cuda {

void check_cudnn(cudnnStatus_t status, const char* what) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char last[512] = "";
  cudnnGetLastErrorString(last, sizeof last);
  throw InternalError(fmt::format("cuDNN, {}: {} ({})", what, cudnnGetErrorString(status), last));
}

CudnnDescriptor::CudnnDescriptor(cudnnBackendDescriptorType_t type) {
  check_cudnn(cudnnBackendCreateDescriptor(type, &descriptor_), "creating a descriptor");
}

CudnnDescriptor::~CudnnDescriptor() {
  if (descriptor_ != nullptr) cudnnBackendDestroyDescriptor(descriptor_);
}

CudnnDescriptor& CudnnDescriptor::operator=(CudnnDescriptor&& other) noexcept {
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

void CudnnDescriptor::set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count,
                          const void* values) {
  check_cudnn(cudnnBackendSetAttribute(descriptor_, name, type, count, values), "setting an attribute");
}

void CudnnDescriptor::finalize(const char* what) { check_cudnn(cudnnBackendFinalize(descriptor_), what); }

void CudnnPlan::run(cudnnHandle_t handle, std::span<const std::int64_t> tensors, std::span<void* const> pointers,
                    void* workspace) const {
  FULMEN_CHECK(tensors.size() == pointers.size(), "{} tensors at {} places", tensors.size(), pointers.size());
  CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
  const auto count = static_cast<std::int64_t>(tensors.size());
  pack.set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, pointers.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, tensors.data());
  pack.set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
  pack.finalize("the pack of pointers");
  check_cudnn(cudnnBackendExecute(handle, plan_.get(), pack.get()), "running a plan");
}

CudnnGraph::Id CudnnGraph::add_tensor(const CudnnShape& shape, const CudnnShape& strides, cudnnDataType_t type,
                                      bool is_virtual, bool by_value) {
  const auto id = static_cast<Id>(tensors_.size()) + 1;
  CudnnDescriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_DATA_TYPE, type);
  tensor.set(CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, shape.data());
  tensor.set(CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides.data());
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, id);
  tensor.set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, std::int64_t{16});
  if (is_virtual) tensor.set(CUDNN_ATTR_TENSOR_IS_VIRTUAL, true);
  if (by_value) tensor.set(CUDNN_ATTR_TENSOR_IS_BY_VALUE, true);
  tensor.finalize("a tensor");
  tensors_.push_back(std::move(tensor));
  return id;
}

CudnnGraph::Id CudnnGraph::memory(const CudnnShape& shape, const CudnnShape& strides, cudnnDataType_t type) {
  return add_tensor(shape, strides, type, false, false);
}

CudnnGraph::Id CudnnGraph::between(const CudnnShape& shape, const CudnnShape& strides, cudnnDataType_t type) {
  return add_tensor(shape, strides, type, true, false);
}

CudnnGraph::Id CudnnGraph::between(const CudnnShape& shape, cudnnDataType_t type) {
  return between(shape, {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}, type);
}

CudnnGraph::Id CudnnGraph::value() { return add_tensor({1, 1, 1, 1}, {1, 1, 1, 1}, CUDNN_DATA_FLOAT, false, true); }

void CudnnGraph::matmul(Id a, Id b, Id c) {
  CudnnDescriptor product(CUDNN_BACKEND_MATMUL_DESCRIPTOR);
  product.set(CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_DATA_FLOAT);
  product.finalize("a matrix product");
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_ADESC, tensor(a));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_BDESC, tensor(b));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_CDESC, tensor(c));
  operation.set(CUDNN_ATTR_OPERATION_MATMUL_DESC, product);
  operation.finalize("the operation of a matrix product");
  parts_.push_back(std::move(product)), operations_.push_back(std::move(operation));
}

void CudnnGraph::pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Id> inputs, Id y, cudnnDataType_t compute) {
  CudnnDescriptor function(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  function.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  function.set(CUDNN_ATTR_POINTWISE_MATH_PREC, compute);
  function.finalize("a pointwise function");
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, function);
  constexpr cudnnBackendAttributeName_t ports[] = {
      CUDNN_ATTR_OPERATION_POINTWISE_XDESC, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_ATTR_OPERATION_POINTWISE_TDESC};
  std::size_t port = 0;
  for (const Id input : inputs) operation.set(ports[port++], tensor(input));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(y));
  operation.finalize("a pointwise operation");
  parts_.push_back(std::move(function)), operations_.push_back(std::move(operation));
}

void CudnnGraph::index(Id x, std::int64_t axis, Id y) {
  constexpr cudnnPointwiseMode_t mode = CUDNN_POINTWISE_GEN_INDEX;
  CudnnDescriptor function(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
  function.set(CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
  function.set(CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_DATA_FLOAT);
  function.set(CUDNN_ATTR_POINTWISE_AXIS, axis);
  function.finalize("an index");
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, function);
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_XDESC, tensor(x));
  operation.set(CUDNN_ATTR_OPERATION_POINTWISE_YDESC, tensor(y));
  operation.finalize("the operation of an index");
  parts_.push_back(std::move(function)), operations_.push_back(std::move(operation));
}

void CudnnGraph::reduce(cudnnReduceTensorOp_t kind, Id x, Id y) {
  CudnnDescriptor reduction(CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
  reduction.set(CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_DATA_FLOAT);
  reduction.set(CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &kind);
  reduction.finalize("a reduction");
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_DESC, reduction);
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_XDESC, tensor(x));
  operation.set(CUDNN_ATTR_OPERATION_REDUCTION_YDESC, tensor(y));
  operation.finalize("the operation of a reduction");
  parts_.push_back(std::move(reduction)), operations_.push_back(std::move(operation));
}

void CudnnGraph::reshape(Id x, Id y) {
  CudnnDescriptor operation(CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_XDESC, tensor(x));
  operation.set(CUDNN_ATTR_OPERATION_RESHAPE_YDESC, tensor(y));
  operation.finalize("a reshape");
  operations_.push_back(std::move(operation));
}

// Configurations that cuDNN proposes but cannot build are no error: the next may do.
bool CudnnGraph::find_plan(cudnnHandle_t handle, const CudnnDescriptor& graph, cudnnBackendHeurMode_t mode,
                           CudnnPlan& plan) {
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
  if (cudnnBackendFinalize(heuristics.get()) != CUDNN_STATUS_SUCCESS) return false;
  constexpr std::int64_t most = 16;
  std::vector<CudnnDescriptor> configurations;
  std::vector<cudnnBackendDescriptor_t> raw;
  for (std::int64_t i = 0; i < most; ++i) {
    configurations.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    raw.push_back(configurations.back().get());
  }
  std::int64_t count = 0;
  if (cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, most,
                               &count, raw.data()) != CUDNN_STATUS_SUCCESS)
    return false;
  for (std::int64_t i = 0; i < std::min(count, most); ++i) {
    CudnnDescriptor candidate(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    candidate.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    candidate.set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configurations[static_cast<std::size_t>(i)]);
    if (cudnnBackendFinalize(candidate.get()) != CUDNN_STATUS_SUCCESS) continue;
    std::int64_t elements = 0;
    check_cudnn(cudnnBackendGetAttribute(candidate.get(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                                         &elements, &plan.workspace_bytes_),
                "the size of a workspace");
    plan.plan_ = std::move(candidate);
    return true;
  }
  return false;
}

CudnnPlan CudnnGraph::build(cudnnHandle_t handle, const char* what) {
  std::vector<cudnnBackendDescriptor_t> operations;
  for (const CudnnDescriptor& operation : operations_) operations.push_back(operation.get());
  CudnnDescriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<std::int64_t>(operations.size()),
            operations.data());
  graph.set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
  graph.finalize("a graph of operations");
  CudnnPlan plan;
  for (const cudnnBackendHeurMode_t mode : {CUDNN_HEUR_MODE_A, CUDNN_HEUR_MODE_FALLBACK})
    if (find_plan(handle, graph, mode, plan)) return plan;
  char last[512] = "";
  cudnnGetLastErrorString(last, sizeof last);
  throw UserError("cuDNN", fmt::format("version {} has no plan for {} ({})", cudnnGetVersion(), what, last),
                  "build without it (-DFULMEN_CUDNN=OFF), or set run.deterministic: true, which does without it");
}

}  // namespace fulmen::cuda
