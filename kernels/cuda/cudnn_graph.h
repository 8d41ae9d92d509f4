// Graphs of operations through cuDNN's backend interface: tensors of four dimensions, the operations of attention, and
// the plan that cuDNN's heuristics choose.
#pragma once

#include <cudnn_graph.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "framework/execution.h"

namespace fulmen::cuda {

void check_cudnn(cudnnStatus_t status, const char* what);

// Owns a backend descriptor.
class CudnnDescriptor {
 public:
  CudnnDescriptor() = default;
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type);
  ~CudnnDescriptor();
  CudnnDescriptor(CudnnDescriptor&& other) noexcept : descriptor_(other.descriptor_) { other.descriptor_ = nullptr; }
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept;

  void set(cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, std::int64_t count, const void* values);
  void set(cudnnBackendAttributeName_t name, std::int64_t value) { set(name, CUDNN_TYPE_INT64, 1, &value); }
  void set(cudnnBackendAttributeName_t name, bool value) { set(name, CUDNN_TYPE_BOOLEAN, 1, &value); }
  void set(cudnnBackendAttributeName_t name, cudnnDataType_t value) { set(name, CUDNN_TYPE_DATA_TYPE, 1, &value); }
  void set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
    set(name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.descriptor_);
  }
  void finalize(const char* what);
  cudnnBackendDescriptor_t get() const { return descriptor_; }

 private:
  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

// Dimensions or strides: batch, heads, rows, columns.
using CudnnShape = std::array<std::int64_t, 4>;

// A plan that is ready to run. Its tensors are told apart by the numbers that CudnnGraph gave them.
class CudnnPlan {
 public:
  std::int64_t workspace_bytes() const { return workspace_bytes_; }
  // pointers[i] is where tensor `tensors[i]` lies: device memory, or host memory of a value.
  void run(cudnnHandle_t handle, std::span<const std::int64_t> tensors, std::span<void* const> pointers,
           void* workspace) const;

 private:
  friend class CudnnGraph;
  CudnnDescriptor plan_;
  std::int64_t workspace_bytes_ = 0;
};

class CudnnGraph {
 public:
  using Id = std::int64_t;

  // A tensor in memory, aligned to 16 bytes; one between operations; a float that the caller hands over by value.
  Id memory(const CudnnShape& shape, const CudnnShape& strides, cudnnDataType_t type);
  Id between(const CudnnShape& shape, const CudnnShape& strides, cudnnDataType_t type = CUDNN_DATA_FLOAT);
  Id between(const CudnnShape& shape, cudnnDataType_t type = CUDNN_DATA_FLOAT);  // row-major
  Id value();

  // c = a b. The heads of b must divide the heads of a, which share them.
  void matmul(Id a, Id b, Id c);
  // y = f(x), y = f(x, b), y = t ? x : b.
  void pointwise(cudnnPointwiseMode_t mode, std::initializer_list<Id> inputs, Id y,
                 cudnnDataType_t compute = CUDNN_DATA_FLOAT);
  // y = the index of each element along the axis.
  void index(Id x, std::int64_t axis, Id y);
  // Over the dimensions that y lacks.
  void reduce(cudnnReduceTensorOp_t operation, Id x, Id y);
  // The same elements under another shape and other strides.
  void reshape(Id x, Id y);

  // The first plan that the heuristics propose and cuDNN can build; throws UserError where there is none. Takes up to
  // seconds.
  CudnnPlan build(cudnnHandle_t handle, const char* what);

 private:
  Id add_tensor(const CudnnShape& shape, const CudnnShape& strides, cudnnDataType_t type, bool is_virtual,
                bool by_value);
  bool find_plan(cudnnHandle_t handle, const CudnnDescriptor& graph, cudnnBackendHeurMode_t mode, CudnnPlan& plan);
  const CudnnDescriptor& tensor(Id id) const { return tensors_[static_cast<std::size_t>(id) - 1]; }

  std::vector<CudnnDescriptor> tensors_;
  std::vector<CudnnDescriptor> parts_;  // what operations refer to
  std::vector<CudnnDescriptor> operations_;
};

}  // namespace fulmen::cuda
