// The golden files: outputs of the authors' own model, to compare with.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "framework/execution.h"
#include "framework/hdf5.h"
#include "model/families/transnormer/config.h"
#include "model/parameter_store.h"
#include "model/piece_transfer.h"

namespace fulmen {

// tests/data: where it was when the tests were built, or FULMEN_TEST_DATA on another machine.
inline std::string test_data_folder() {
  const char* const given = std::getenv("FULMEN_TEST_DATA");
  return given != nullptr ? given : FULMEN_TEST_DATA;
}

class Golden {
 public:
  explicit Golden(const std::string& name) : file_(hdf5::File::open(test_data_folder() + "/golden/" + name + ".h5")) {}

  TransnormerConfig config() const {
    TransnormerConfig config;
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
    dataset.read(std::vector<std::int64_t>(dataset.shape().size(), 0),
                 Tensor(data.data(), DType::fp64, dataset.shape()));
    return data;
  }
  // Names of datasets that begin so, without the beginning.
  std::vector<std::string> names(const std::string& beginning) const {
    std::vector<std::string> list;
    for (const std::string& name : file_.dataset_names())
      if (name.starts_with(beginning)) list.push_back(name.substr(beginning.size()));
    return list;
  }
  // A hyperslab.
  std::vector<double> values(const std::string& name, const std::vector<std::int64_t>& offset,
                             const Shape& shape) const {
    std::vector<double> data(static_cast<std::size_t>(elements_of(shape)));
    file_.dataset(name).read(offset, Tensor(data.data(), DType::fp64, shape));
    return data;
  }
  double scalar(const std::string& name) const { return values(name).at(0); }
  std::vector<std::int32_t> tokens(const std::string& name) const {
    const std::vector<double> numbers = values(name);
    return {numbers.begin(), numbers.end()};
  }

  // Fills this rank's part of every parameter from weights/NAME.
  void load_weights(const ParameterStore& parameters, const Execution& execution) const {
    for (const ParameterPiece& piece : parameters.pieces(parameters.flat_weights())) {
      std::vector<std::byte> host(piece.memory.bytes());
      file_.dataset("/weights/" + piece.tensor)
          .read(piece.offset, Tensor(host.data(), piece.memory.dtype(), piece.memory.shape()));
      copy_piece_from_host(execution, host.data(), piece.memory);
    }
  }

 private:
  std::int64_t integer(const char* name) const { return static_cast<std::int64_t>(file_.read_number_attribute(name)); }
  hdf5::File file_;
};

// The values of an fp32 or fp64 tensor, contiguous but for its rows.
inline std::vector<double> host_values(const Execution& execution, const Tensor& tensor) {
  const auto elements = static_cast<std::size_t>(tensor.elements());
  if (tensor.dtype() == DType::fp64) {
    std::vector<double> values(elements);
    copy_piece_to_host(execution, tensor, values.data());
    return values;
  }
  FULMEN_CHECK(tensor.dtype() == DType::fp32, "{} among golden values", tensor.describe());
  std::vector<float> values(elements);
  copy_piece_to_host(execution, tensor, values.data());
  return {values.begin(), values.end()};
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
