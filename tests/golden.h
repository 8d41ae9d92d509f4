// The golden files: outputs of the authors' own model, to compare with.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "framework/execution.h"
#include "framework/hdf5.h"
#include "framework/transfer.h"
#include "model/model_config.h"
#include "model/parameter_store.h"

namespace fulmen {

class Golden {
 public:
  explicit Golden(const std::string& name) : file_(hdf5::File::open(std::string(FULMEN_TEST_DATA) + "/golden/" + name + ".h5")) {}

  ModelConfig config() const {
    ModelConfig config;
    config.layers = integer("layers");
    config.hidden = integer("dim");
    config.heads = integer("heads");
    config.glu = integer("glu");
    config.vocabulary = integer("vocab");
    config.norm_epsilon = file_.read_number_attribute("eps");
    return config;
  }

  bool has(const std::string& name) const { return file_.exists(name); }
  Shape shape(const std::string& name) const { return file_.dataset(name).shape(); }
  std::vector<double> values(const std::string& name) const {
    const hdf5::Dataset dataset = file_.dataset(name);
    std::vector<double> data(static_cast<std::size_t>(elements_of(dataset.shape())));
    dataset.read(std::vector<std::int64_t>(dataset.shape().size(), 0), Tensor(data.data(), DType::fp64, dataset.shape()));
    return data;
  }
  double scalar(const std::string& name) const { return values(name).at(0); }
  std::vector<std::int32_t> tokens(const std::string& name) const {
    const std::vector<double> numbers = values(name);
    return {numbers.begin(), numbers.end()};
  }

  // Fills this rank's part of every parameter from weights/NAME.
  void load_weights(const ParameterStore& parameters) const {
    for (const ParameterPiece& piece : parameters.pieces(parameters.flat_weights()))
      file_.dataset("/weights/" + piece.tensor).read(piece.offset, piece.memory);
  }

 private:
  std::int64_t integer(const char* name) const { return static_cast<std::int64_t>(file_.read_number_attribute(name)); }
  hdf5::File file_;
};

// The values of a contiguous fp32 or fp64 tensor in host memory.
inline std::vector<double> host_values(const Tensor& tensor) {
  if (tensor.dtype() == DType::fp64) return {tensor.as<double>(), tensor.as<double>() + tensor.elements()};
  return {tensor.as<float>(), tensor.as<float>() + tensor.elements()};
}

// max|a - b| / max|b|; infinite when a NaN is anywhere or the sizes differ.
inline double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0.0, largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i]) || !std::isfinite(b[i])) return INFINITY;
    difference = std::max(difference, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(b[i]));
  }
  return largest > 0.0 ? difference / largest : difference > 0.0 ? INFINITY : 0.0;
}

}  // namespace fulmen
