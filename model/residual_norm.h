// The norm of a residual stream, of any kind, with the addition in front of it and the parameters that it may have.
#pragma once

#include <vector>

#include "kernels/norm.h"
#include "model/model_context.h"
#include "model/parameter.h"
#include "model/residual_stream.h"

namespace fulmen {

// A norm as data. With `identity` it is none: normed = sum.
struct Norm {
  double epsilon = 1e-6;
  NormKind kind = NormKind::simple;
  std::vector<ParameterDeclaration> weights = {};  // the gain, then the bias, where the kind has them
  bool identity = false;
};

// A norm's gain or bias [width]: gradients are partial where tensor ranks hold parts of the tokens.
ParameterDeclaration declare_norm_weight(const std::string& name, std::int64_t width, double initial);

class ResidualNorm {
 public:
  ResidualNorm(const ModelContext& context, const Norm& norm);

  // For each row, for the backward pass: [rows] or [rows, 2], accumulation dtype.
  Shape statistics_shape(std::int64_t rows) const;
  // sum = the sum of the stream's terms; normed = norm(sum). `sum` may be the stream's residual.
  void forward(const ResidualStream& stream, const Tensor& sum, const Tensor& normed, const Tensor& statistics) const;
  // sum = residual + branch, or residual itself where branch is null (sum may then be residual); normed = norm(sum).
  void forward(const Tensor& residual, const Tensor& branch, const Tensor& sum, const Tensor& normed,
               const Tensor& statistics) const;
  // weighted_norm_backward of kernels/norm.h; adds to the gradients of gain and bias.
  void backward(const Tensor& d_normed, const Tensor& sum, const Tensor& statistics, const Tensor& d_residual,
                const Tensor& d_sum, const Tensor& normed) const;

 private:
  NormWeights weights() const;

  const ModelContext& context_;
  double epsilon_;
  NormKind kind_;
  bool identity_;
  std::vector<ParameterId> ids_;
};

}  // namespace fulmen
