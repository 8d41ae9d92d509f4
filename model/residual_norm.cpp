// The norm of a residual stream.
#include "model/residual_norm.h"

#include "kernels/elementwise.h"

namespace fulmen {

ParameterDeclaration declare_norm_weight(const std::string& name, std::int64_t width, double initial) {
  ParameterDeclaration declaration = declare_vector(
      name, {width}, [initial](const RandomStream&, std::int64_t) { return initial; }, 0);
  declaration.placement = weight_placement(AxisPlacement::with_tokens);
  return declaration;
}

ResidualNorm::ResidualNorm(const ModelContext& context, const Norm& norm)
    : context_(context), epsilon_(norm.epsilon), kind_(norm.kind), identity_(norm.identity) {
  const std::size_t expected = kind_ == NormKind::simple ? 0 : kind_ == NormKind::layer ? 2 : 1;
  FULMEN_CHECK(norm.weights.size() == expected, "a norm with {} weights, not {}", norm.weights.size(), expected);
  for (const ParameterDeclaration& weight : norm.weights) ids_.push_back(context.parameters->id(weight.name));
}

Shape ResidualNorm::statistics_shape(std::int64_t rows) const {
  if (kind_ == NormKind::simple) return {rows};
  return {rows, statistics_of(kind_)};
}

NormWeights ResidualNorm::weights() const {
  NormWeights weights{kind_, {}, {}};
  if (!ids_.empty()) weights.gain = context_.parameters->weight(ids_[0]).flatten();
  if (ids_.size() > 1) weights.bias = context_.parameters->weight(ids_[1]).flatten();
  return weights;
}

void ResidualNorm::forward(const ResidualStream& stream, const Tensor& sum, const Tensor& normed,
                           const Tensor& statistics) const {
  if (!stream.scaled()) return forward(stream.residual, stream.branch, sum, normed, statistics);
  add_scaled(context_.execution, stream.residual, stream.residual_scale, stream.branch, stream.branch_scale, sum);
  forward(sum, {}, sum, normed, statistics);
}

void ResidualNorm::forward(const Tensor& residual, const Tensor& branch, const Tensor& sum, const Tensor& normed,
                           const Tensor& statistics) const {
  const Execution& execution = context_.execution;
  if (!branch && sum.data() != residual.data()) copy(execution, residual, sum);
  if (identity_) {
    if (branch) add(execution, residual, branch, sum);
    return copy(execution, sum, normed);
  }
  const Tensor& from = branch ? residual : sum;
  if (kind_ == NormKind::simple)
    residual_norm_forward(execution, from, branch, epsilon_, sum, normed, statistics);
  else
    weighted_norm_forward(execution, from, branch, weights(), epsilon_, sum, normed, statistics);
}

void ResidualNorm::backward(const Tensor& d_normed, const Tensor& sum, const Tensor& statistics,
                            const Tensor& d_residual, const Tensor& d_sum, const Tensor& normed) const {
  if (identity_) {
    if (d_residual)
      add(context_.execution, d_normed, d_residual, d_sum);
    else if (d_sum.data() != d_normed.data())
      copy(context_.execution, d_normed, d_sum);
    if (normed) copy(context_.execution, sum, normed);
    return;
  }
  if (kind_ == NormKind::simple)
    return residual_norm_backward(context_.execution, d_normed, sum, statistics, d_residual, d_sum, normed);
  NormWeightGradients gradients;
  if (!ids_.empty()) gradients.d_gain = context_.parameters->gradient(ids_[0]).flatten();
  if (ids_.size() > 1) gradients.d_bias = context_.parameters->gradient(ids_[1]).flatten();
  weighted_norm_backward(context_.execution, d_normed, sum, weights(), statistics, d_residual, d_sum, normed,
                         gradients);
}

}  // namespace fulmen
