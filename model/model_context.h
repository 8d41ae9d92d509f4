// The context of the executors of branches at run time: the device, the parameters, and the ranks that share a layer.
#pragma once

#include <cstdint>
#include <functional>

#include "framework/execution.h"
#include "model/parameter_store.h"
#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace fulmen {

// Told what a stage is about to do with a layer's parameters. So weights can be gathered just before they are used, and
// gradients reduced as soon as they are whole. Null functions are not called. Layers are numbered over the whole model.
struct LayerHooks {
  std::function<void(std::int64_t layer)> before_forward;          // reads weights
  std::function<void(std::int64_t layer)> before_backward_input;   // reads weights; also before recomputing the layer
  std::function<void(std::int64_t layer)> before_backward_weight;  // adds to gradients of matrices
  std::function<void(std::int64_t layer)> after_backward_weight;   // both halves are done for this micro-batch

  static void call(const std::function<void(std::int64_t)>& hook, std::int64_t layer) {
    if (hook) hook(layer);
  }
};

// How every sample is shared out over ranks, each holding a slice of it (sequence parallelism).
struct SequenceSlices {
  Communicator* ranks = nullptr;     // in the order of the slices; null: this rank holds whole samples
  Tensor bounds;                     // int64 [ranks + 1]: slice i holds tokens [bounds[i], bounds[i + 1])
  std::vector<std::int64_t> starts;  // the same on the host
  bool overlap = false;              // states travel behind the computation of what does not need them
  bool overlap_ring = false;         // keys and values travel behind attention to the keys that are there
};

// Belongs to the run and outlives the model.
struct ModelContext {
  Execution execution;
  Communicator* tensor = nullptr;  // the tensor group
  ParameterStore* parameters = nullptr;
  SequenceSlices sequence = {};
  LayerHooks hooks = {};
  bool split_tokens = false;              // the residual stream lies in parts on the tensor ranks (model/token_split.h)
  bool overlap_tensor = false;            // communication over the tensor group overlaps with products
  int communication_multiprocessors = 0;  // of a GPU, that it has then
  std::function<Communicator*(Axis)> owners_along = {};  // the ranks along an axis inside data

  // Null where this rank owns everything along the axis.
  Communicator* owners(Axis axis) const { return owners_along ? owners_along(axis) : nullptr; }

  DType activation_dtype() const { return parameters->precision().parameters; }
  // For products that overlap with communication of the tensor group.
  Execution beside_communication() const {
    Execution beside = execution;
    if (overlap_tensor) beside.multiprocessors_left = communication_multiprocessors;
    return beside;
  }
  // Sums equal-shaped partial results over the tensor group.
  void sum_over_tensor(const Tensor& values) const {
    if (tensor->size() == 1) return;
    const ProfileScope scope = ProfileScope::communication(execution.profiler, "tensor communication");
    tensor->all_reduce(values, ReduceOp::sum, execution.stream);
  }
};

// Adds a linear layer's d_y^T x to its weight's gradient, or writes it where it is the first of the step.
void add_weight_gradient(const ModelContext& context, const Execution& execution, ParameterId weight, const Tensor& d_y,
                         const Tensor& x);

}  // namespace fulmen
