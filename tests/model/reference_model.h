// The whole model once more, written naively from its equations in double precision, without any code of the layers. It
// is the oracle for an error that finite differences cannot see: a wrong forward pass with a consistent gradient.
#pragma once

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "tests/model/test_model.h"

namespace fulmen {

class ReferenceModel {
 public:
  using Rows = std::vector<std::vector<double>>;  // [tokens][width]

  explicit ReferenceModel(const RunningModel& model) : config_(as<TransnormerConfig>(model.config())) {
    const ParameterStore& parameters = model.parameters;
    for (const ParameterPiece& piece : parameters.pieces(parameters.flat_weights())) {
      std::vector<double>& tensor = tensors_[piece.tensor];  // pieces of one rank follow each other
      const testing::Values values = testing::read(piece.memory);
      tensor.insert(tensor.end(), values.begin(), values.end());
    }
  }

  // The logits [tokens][vocabulary] of a micro-batch whose rows hold the documents of `batch.segments`.
  Rows logits(const MicroBatch& batch) const {
    const std::vector<double>& embedding = tensors_.at("model.embed_tokens.weight");
    const auto hidden = static_cast<std::size_t>(config_.hidden);
    Rows x;
    for (std::int64_t t = 0; t < batch.shape.tokens(); ++t) {
      x.emplace_back();
      for (std::size_t j = 0; j < hidden; ++j)
        x.back().push_back(std::sqrt(static_cast<double>(hidden)) *
                           embedding[static_cast<std::size_t>(batch.tokens.as<std::int32_t>()[t]) * hidden + j]);
    }
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
      add(x, mix_tokens(layer, norm(x), batch));
      add(x, mix_channels(layer, norm(x)));
    }
    return linear(norm(x), "model.embed_tokens.weight");
  }

  // The scaled sum of the weighted losses, in nats.
  double loss(const MicroBatch& batch) const {
    const Rows rows = logits(batch);
    double sum = 0.0;
    for (std::size_t t = 0; t < rows.size(); ++t) {
      double exponentials = 0.0;
      for (const double logit : rows[t]) exponentials += std::exp(logit);
      const double target = rows[t][static_cast<std::size_t>(batch.targets.as<std::int32_t>()[t])];
      sum += static_cast<double>(batch.weights.as<float>()[t]) * (std::log(exponentials) - target);
    }
    return sum * *batch.loss_scale.as<double>();
  }

 private:
  static double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
  static double silu(double x) { return x * sigmoid(x); }

  static void add(Rows& x, const Rows& branch) {
    for (std::size_t t = 0; t < x.size(); ++t)
      for (std::size_t j = 0; j < x[t].size(); ++j) x[t][j] += branch[t][j];
  }

  Rows norm(const Rows& x) const {
    Rows y = x;
    for (std::vector<double>& row : y) {
      double squares = 0.0;
      for (const double value : row) squares += value * value;
      for (double& value : row) value /= std::sqrt(squares / static_cast<double>(row.size()) + config_.norm_epsilon);
    }
    return y;
  }

  // x W^T with W [out, in].
  Rows linear(const Rows& x, const std::string& name) const {
    const std::vector<double>& weight = tensors_.at(name);
    const std::size_t in = x.front().size(), out = weight.size() / in;
    Rows y(x.size(), std::vector<double>(out, 0.0));
    for (std::size_t t = 0; t < x.size(); ++t)
      for (std::size_t o = 0; o < out; ++o)
        for (std::size_t i = 0; i < in; ++i) y[t][o] += weight[o * in + i] * x[t][i];
    return y;
  }

  // Heads beyond a power of two continue with every second step of the ladder of twice as many.
  double slope(std::int64_t head, std::int64_t layer) const {
    std::int64_t power = 1;
    while (2 * power <= config_.heads) power *= 2;
    const double base =
        head < power
            ? std::pow(2.0, -8.0 * static_cast<double>(head + 1) / static_cast<double>(power))
            : std::pow(2.0, -8.0 * static_cast<double>(2 * (head - power) + 1) / static_cast<double>(2 * power));
    return base * (1.0 - static_cast<double>(layer) / static_cast<double>(config_.layers - 1) + 1e-5);
  }

  Rows mix_tokens(std::int64_t layer, const Rows& normed, const MicroBatch& batch) const {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".token_mixer.";
    const bool low_rank = config_.variant == "tnl3";
    const auto hidden = static_cast<std::size_t>(config_.hidden),
               width = hidden / static_cast<std::size_t>(config_.heads);
    const Rows projected = linear(normed, prefix + (low_rank ? "qkv_proj.weight" : "qkvu_proj.weight"));
    Rows gate;
    if (low_rank) gate = linear(linear(normed, prefix + "output_gate.0.weight"), prefix + "output_gate.1.weight");
    const auto theta = tensors_.find(prefix + "lrpe.theta");
    const std::vector<std::int64_t> document = documents(batch);

    Rows attention(normed.size(), std::vector<double>(hidden, 0.0));
    for (std::size_t t = 0; t < normed.size(); ++t)
      for (std::size_t s = 0; s <= t; ++s) {
        if (document[s] != document[t]) continue;
        for (std::size_t j = 0; j < hidden; j += width) {  // a head
          double score = 0.0;
          for (std::size_t i = j; i < j + width; ++i) {
            const double angle = theta == tensors_.end() ? 0.0 : theta->second[i] * static_cast<double>(t - s);
            score += silu(projected[t][i]) * silu(projected[s][hidden + i]) * std::cos(angle);
          }
          score *= std::exp(-slope(static_cast<std::int64_t>(j / width), layer) * static_cast<double>(t - s));
          for (std::size_t i = j; i < j + width; ++i) {
            const double value = projected[s][2 * hidden + i];
            attention[t][i] += score * (low_rank ? silu(value) : value);
          }
        }
      }
    Rows gated = norm(attention);
    for (std::size_t t = 0; t < gated.size(); ++t)
      for (std::size_t i = 0; i < hidden; ++i)
        gated[t][i] *= low_rank ? sigmoid(gate[t][i]) : projected[t][3 * hidden + i];
    return linear(gated, prefix + "out_proj.weight");
  }

  Rows mix_channels(std::int64_t layer, const Rows& normed) const {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".channel_mixer.";
    Rows product = linear(normed, prefix + "l1.weight");
    const Rows second = linear(normed, prefix + "l2.weight");
    for (std::size_t t = 0; t < product.size(); ++t)
      for (std::size_t i = 0; i < product[t].size(); ++i) product[t][i] *= second[t][i];
    return linear(product, prefix + "l3.weight");
  }

  // The number of the document that each token belongs to.
  static std::vector<std::int64_t> documents(const MicroBatch& batch) {
    std::vector<std::int64_t> numbers;
    for (std::int64_t t = 0, document = -1; t < batch.shape.tokens(); ++t) {
      if (t == batch.segments.as<std::int64_t>()[document + 1]) ++document;
      numbers.push_back(document);
    }
    return numbers;
  }

  TransnormerConfig config_;
  std::map<std::string, std::vector<double>> tensors_;
};

}  // namespace fulmen
