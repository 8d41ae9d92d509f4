// AdamW over flat buffers.
#include "train/optimizer.h"

#include <array>
#include <cmath>

#include "framework/transfer.h"
#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace fulmen {

Optimizer::Optimizer(const OptimizerConfig& config, double clip, ParameterStore& parameters, Mesh& mesh,
                     const Execution& execution)
    : config_(config),
      clip_(clip),
      parameters_(parameters),
      model_ranks_(mesh.along({Axis::tensor, Axis::pipeline})),
      execution_(execution),
      master_(parameters, execution) {
  const auto allocate = [&](DType dtype, std::int64_t elements) {
    return OwnedTensor(execution.device, dtype, {elements}, MemoryKind::optimizer, *execution.ledger);
  };
  for (const ParameterGroup& group : parameters.groups()) {
    FULMEN_CHECK(group.key.clip_group == parameters.groups().front().key.clip_group, "only one clip group is built");
    const DType type = group.weights.view().dtype() == DType::fp64 ? DType::fp64 : DType::fp32;
    moments_.push_back({allocate(type, group.elements), allocate(type, group.elements)});
  }
  scalars_ = allocate(DType::fp64, adamw_scalars);
  square_sum_ = allocate(DType::fp64, 1);
  norm_ = allocate(DType::fp64, 1);
}

void Optimizer::reduce_square_sum() {
  fill_zero(execution_, square_sum_);
  for (const ParameterGroup& group : parameters_.groups())
    for (const FlatRange& range : group.counted)
      add_sum_of_squares(execution_, group.gradients.view().slice(0, range.begin, range.end), square_sum_);
  if (model_ranks_.size() > 1) model_ranks_.all_reduce(square_sum_, ReduceOp::sum, execution_.stream);
}

void Optimizer::step(double learning_rate, std::int64_t updates_before) {
  const double t = static_cast<double>(updates_before + 1);
  const std::array<double, adamw_scalars> scalars = {learning_rate, 1.0 - std::pow(config_.betas[0], t),
                                                     1.0 - std::pow(config_.betas[1], t), 1.0};
  copy_to_device(execution_, scalars.data(), scalars_);
  reduce_square_sum();
  set_clip_scale(execution_, square_sum_, clip_, norm_, scalars_);
  const std::vector<Tensor> master = master_.flat();
  for (std::size_t i = 0; i < moments_.size(); ++i) {
    const ParameterGroup& group = parameters_.groups()[i];
    AdamwOptions options;
    options.beta1 = config_.betas[0];
    options.beta2 = config_.betas[1];
    options.epsilon = config_.epsilon;
    options.weight_decay = group.key.weight_decay ? config_.weight_decay : 0.0;
    options.learning_rate_scale = group.key.learning_rate_scale;
    adamw_update(execution_, master[i], group.gradients, moments_[i].exp_avg, moments_[i].exp_avg_sq, scalars_, options,
                 master_.rounded(i));
  }
}

double Optimizer::compute_gradient_norm() {
  reduce_square_sum();
  double sum = 0.0;
  copy_to_host(execution_, square_sum_, &sum);
  return std::sqrt(sum);
}

double Optimizer::gradient_norm() const {
  double norm = 0.0;
  copy_to_host(execution_, norm_, &norm);
  return norm;
}

std::vector<Tensor> Optimizer::exp_avg() const {
  std::vector<Tensor> flat;
  for (const Moments& moments : moments_) flat.push_back(moments.exp_avg);
  return flat;
}

std::vector<Tensor> Optimizer::exp_avg_sq() const {
  std::vector<Tensor> flat;
  for (const Moments& moments : moments_) flat.push_back(moments.exp_avg_sq);
  return flat;
}

}  // namespace fulmen
