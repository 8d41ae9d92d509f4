// Definitions written out, without regard to speed or to cleverness.
#include "kernels/reference/layers.h"

#include <cmath>

#include "kernels/reference/activation.h"

namespace fulmen::reference {
namespace {

double mean_square(const double* x, std::int64_t width) {
  double sum = 0;
  for (std::int64_t j = 0; j < width; ++j) sum += x[j] * x[j];
  return sum / static_cast<double>(width);
}

// The factor of a column in a norm.
double factor(NormKind kind, const Values& gain, std::int64_t column) {
  if (kind == NormKind::simple) return 1.0;
  return kind == NormKind::zero_centred ? 1.0 + gain[column] : gain[column];
}

// A row without its mean where the norm takes that away.
Values centred(const double* x, NormKind kind, std::int64_t width) {
  double mean = 0;
  for (std::int64_t j = 0; j < width && kind == NormKind::layer; ++j) mean += x[j] / static_cast<double>(width);
  Values row(x, x + width);
  for (double& value : row) value -= mean;
  return row;
}

// log sum_j exp(x_j), shifted by the maximum.
double log_sum_exp(const double* x, std::int64_t count) {
  double maximum = x[0], sum = 0;
  for (std::int64_t j = 0; j < count; ++j) maximum = std::fmax(maximum, x[j]);
  for (std::int64_t j = 0; j < count; ++j) sum += std::exp(x[j] - maximum);
  return maximum + std::log(sum);
}

}  // namespace

Values gemm(const Values& a, bool transpose_a, const Values& b, bool transpose_b, std::int64_t m, std::int64_t n,
            std::int64_t k) {
  Values c(m * n, 0.0);
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      for (std::int64_t l = 0; l < k; ++l)
        c[i * n + j] += (transpose_a ? a[l * m + i] : a[i * k + l]) * (transpose_b ? b[j * k + l] : b[l * n + j]);
  return c;
}

Values simple_rms_norm(const Values& x, std::int64_t width, double epsilon) {
  Values y(x.size());
  for (std::size_t row = 0; row < x.size(); row += width)
    for (std::int64_t j = 0; j < width; ++j) y[row + j] = x[row + j] / std::sqrt(mean_square(&x[row], width) + epsilon);
  return y;
}

Values simple_rms_norm_backward(const Values& x, const Values& d_y, std::int64_t width, double epsilon) {
  Values d_x(x.size(), 0.0);
  for (std::size_t row = 0; row < x.size(); row += width) {
    const double r = 1.0 / std::sqrt(mean_square(&x[row], width) + epsilon);
    for (std::int64_t i = 0; i < width; ++i)
      for (std::int64_t j = 0; j < width; ++j)
        d_x[row + j] +=
            d_y[row + i] * ((i == j ? r : 0.0) - x[row + i] * x[row + j] * r * r * r / static_cast<double>(width));
  }
  return d_x;
}

Values norm(const Values& x, NormKind kind, const Values& gain, const Values& bias, std::int64_t width,
            double epsilon) {
  Values y;
  for (std::size_t row = 0; row < x.size(); row += width) {
    const Values normed = simple_rms_norm(centred(&x[row], kind, width), width, epsilon);
    for (std::int64_t j = 0; j < width; ++j)
      y.push_back(normed[j] * factor(kind, gain, j) + (kind == NormKind::layer ? bias[j] : 0.0));
  }
  return y;
}

NormGradients norm_backward(const Values& x, NormKind kind, const Values& gain, const Values& d_y, std::int64_t width,
                            double epsilon) {
  NormGradients result{{}, Values(width, 0.0), Values(width, 0.0)};
  for (std::size_t row = 0; row < x.size(); row += width) {
    const Values apart = centred(&x[row], kind, width), normed = simple_rms_norm(apart, width, epsilon);
    Values d_normed(width);
    for (std::int64_t j = 0; j < width; ++j) {
      d_normed[j] = d_y[row + j] * factor(kind, gain, j);
      result.d_gain[j] += d_y[row + j] * normed[j];
      result.d_bias[j] += d_y[row + j];
    }
    // Taking the mean away is a projection, which is its own transpose.
    const Values d_apart = simple_rms_norm_backward(apart, d_normed, width, epsilon);
    const Values d_row = centred(d_apart.data(), kind, width);
    result.d_x.insert(result.d_x.end(), d_row.begin(), d_row.end());
  }
  return result;
}

Values gated_norm(const Values& x, const Values& gate, Activation activation, std::int64_t width, double epsilon) {
  Values y = simple_rms_norm(x, width, epsilon);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] *= activate(activation, gate[i]);
  return y;
}

GatedNormGradients gated_norm_backward(const Values& x, const Values& gate, Activation activation, const Values& d_y,
                                       std::int64_t width, double epsilon) {
  const Values normed = simple_rms_norm(x, width, epsilon);
  Values d_normed(x.size()), d_gate(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    d_normed[i] = d_y[i] * activate(activation, gate[i]);
    d_gate[i] = d_y[i] * normed[i] * activation_derivative(activation, gate[i]);
  }
  return {simple_rms_norm_backward(x, d_normed, width, epsilon), d_gate};
}

HeadNormResult head_norm(const HeadNormProblem& problem, const Values& d_y) {
  const std::size_t count = problem.x.size(), columns = problem.gain.size();
  const bool gated = !problem.gate.empty(), first = problem.place == GatePlace::before_norm;
  Values act(count, 1.0), u(count), d_n(count);
  for (std::size_t i = 0; i < count && gated; ++i) act[i] = activate(problem.activation, problem.gate[i]);
  for (std::size_t i = 0; i < count; ++i) u[i] = problem.x[i] * (first ? act[i] : 1.0);
  const Values n = simple_rms_norm(u, problem.group_width, problem.epsilon);
  HeadNormResult result{Values(count), {}, Values(gated ? count : 0), Values(columns, 0.0)};
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t column = columns == 0 ? 0 : i % problem.width % columns;
    const double factor = columns == 0 ? 1.0 : problem.gain[column] + (problem.zero_centred ? 1.0 : 0.0);
    const double after = first ? 1.0 : act[i];
    result.y[i] = n[i] * factor * after;
    d_n[i] = d_y[i] * factor * after;
    if (columns > 0) result.d_gain[column] += d_y[i] * n[i] * after;
    if (gated && !first)
      result.d_gate[i] = d_y[i] * n[i] * factor * activation_derivative(problem.activation, problem.gate[i]);
  }
  result.d_x = simple_rms_norm_backward(u, d_n, problem.group_width, problem.epsilon);
  for (std::size_t i = 0; i < count && gated && first; ++i) {
    result.d_gate[i] = result.d_x[i] * problem.x[i] * activation_derivative(problem.activation, problem.gate[i]);
    result.d_x[i] *= act[i];
  }
  return result;
}

Values gated_linear_unit(const Values& a, const Values& b, Activation activation) {
  Values y(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) y[i] = activate(activation, a[i]) * b[i];
  return y;
}

GatedLinearUnitGradients gated_linear_unit_backward(const Values& a, const Values& b, Activation activation,
                                                    const Values& d_y) {
  GatedLinearUnitGradients result{Values(a.size()), Values(a.size())};
  for (std::size_t i = 0; i < a.size(); ++i) {
    result.d_a[i] = d_y[i] * b[i] * activation_derivative(activation, a[i]);
    result.d_b[i] = d_y[i] * activate(activation, a[i]);
  }
  return result;
}

Values cross_entropy(const Values& logits, const std::vector<std::int32_t>& targets, const std::vector<float>& weights,
                     std::int64_t columns) {
  Values losses(targets.size());
  for (std::size_t t = 0; t < targets.size(); ++t) {
    const double* const row = &logits[t * columns];
    losses[t] = weights[t] * (log_sum_exp(row, columns) - row[targets[t]]);
  }
  return losses;
}

Values cross_entropy_backward(const Values& logits, const std::vector<std::int32_t>& targets,
                              const std::vector<float>& weights, std::int64_t columns, double scale) {
  Values d_logits(logits.size());
  for (std::size_t t = 0; t < targets.size(); ++t) {
    const double* const row = &logits[t * columns];
    for (std::int64_t j = 0; j < columns; ++j)
      d_logits[t * columns + j] =
          scale * weights[t] * (std::exp(row[j] - log_sum_exp(row, columns)) - (j == targets[t] ? 1.0 : 0.0));
  }
  return d_logits;
}

Values embedding(const std::vector<std::int32_t>& tokens, const Values& weight, std::int64_t width, std::int64_t first,
                 double scale) {
  const auto rows = static_cast<std::int64_t>(weight.size()) / width;
  Values out(tokens.size() * width, 0.0);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const std::int64_t row = tokens[t] - first;
    for (std::int64_t j = 0; row >= 0 && row < rows && j < width; ++j)
      out[t * width + j] = scale * weight[row * width + j];
  }
  return out;
}

Values embedding_backward(const std::vector<std::int32_t>& tokens, const Values& d_out, std::int64_t width,
                          std::int64_t first, std::int64_t rows, double scale) {
  Values d_weight(rows * width, 0.0);
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const std::int64_t row = tokens[t] - first;
    for (std::int64_t j = 0; row >= 0 && row < rows && j < width; ++j)
      d_weight[row * width + j] += scale * d_out[t * width + j];
  }
  return d_weight;
}

Values rotate(const Values& x, std::int64_t head_width, RotationPairs pairs, const Values& frequencies,
              const std::vector<std::int64_t>& positions, double scale) {
  Values y = x;
  const std::size_t columns = x.size() / positions.size(), half = frequencies.size();
  for (std::size_t head = 0; head < x.size(); head += head_width)
    for (std::size_t j = 0; j < half; ++j) {
      const std::size_t a = head + (pairs == RotationPairs::halves ? j : 2 * j);
      const std::size_t b = pairs == RotationPairs::halves ? a + half : a + 1;
      const double angle = static_cast<double>(positions[head / columns]) * frequencies[j];
      y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
      y[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
    }
  for (double& value : y) value *= scale;
  return y;
}

void adamw(Values& parameters, const Values& gradients, Values& exp_avg, Values& exp_avg_sq, const Values& scalars,
           const AdamwOptions& options) {
  const double learning_rate = scalars[0] * options.learning_rate_scale;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const double gradient = gradients[i] * scalars[3];
    parameters[i] *= 1.0 - learning_rate * options.weight_decay;
    exp_avg[i] = options.beta1 * exp_avg[i] + (1.0 - options.beta1) * gradient;
    exp_avg_sq[i] = options.beta2 * exp_avg_sq[i] + (1.0 - options.beta2) * gradient * gradient;
    const double denominator = std::sqrt(exp_avg_sq[i] / scalars[2]) + options.epsilon;
    parameters[i] -= learning_rate * (exp_avg[i] / scalars[1]) / denominator;
  }
}

}  // namespace fulmen::reference
