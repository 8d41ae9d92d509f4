// Declarations of parameters and their local layout.
#include "model/parameter.h"

#include <algorithm>

namespace fulmen {

const LogicalTensor& ParameterDeclaration::tensor(const std::string& tensor_name) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const LogicalTensor& t) { return t.name == tensor_name; });
  FULMEN_CHECK(found != tensors.end(), "parameter {} has no tensor {}", name, tensor_name);
  return *found;
}

std::array<AxisPlacement, mesh_axes> weight_placement(AxisPlacement tensor) {
  std::array<AxisPlacement, mesh_axes> placement{};
  placement[static_cast<std::size_t>(Axis::tensor)] = tensor;
  placement[static_cast<std::size_t>(Axis::sequence)] = AxisPlacement::replicated_partial;
  placement[static_cast<std::size_t>(Axis::data)] = AxisPlacement::replicated_partial;
  placement[static_cast<std::size_t>(Axis::pipeline)] = AxisPlacement::owned;
  return placement;
}

ParameterDeclaration declare_weight(const std::string& name, Shape shape, Initializer initializer, int dimension,
                                    std::int64_t units) {
  const std::int64_t rows = shape[0];
  const std::int64_t columns = elements_of(shape) / rows;
  ParameterDeclaration declaration;
  declaration.name = name;
  declaration.dimension = dimension;
  declaration.segments = {{name, 0, dimension == 0 ? rows : columns, std::max<std::int64_t>(units, 1)}};
  declaration.tensors = {{name, std::move(shape), std::move(initializer)}};
  declaration.placement = weight_placement(units > 0 ? AxisPlacement::split : AxisPlacement::replicated);
  return declaration;
}

ParameterDeclaration declare_vector(const std::string& name, Shape shape, Initializer initializer, std::int64_t units) {
  ParameterDeclaration declaration = declare_weight(name, std::move(shape), std::move(initializer), 0, units);
  declaration.group.gradient = GradientForm::sum;
  declaration.group.weight_decay = false;
  return declaration;
}

ParameterDeclaration declare_fused(const std::string& name, std::int64_t parts, std::int64_t rows, std::int64_t columns,
                                   std::int64_t units, const Initializer& initializer) {
  ParameterDeclaration declaration = declare_weight(name, {parts * rows, columns}, initializer, 0, units);
  declaration.segments.clear();
  for (std::int64_t part = 0; part < parts; ++part) declaration.segments.push_back({name, part * rows, rows, units});
  return declaration;
}

ParameterDeclaration declare_pair(const std::string& first, const std::string& second, const Shape& shape,
                                  const Initializer& initializer) {
  const auto stem = [](const std::string& name) { return name.substr(0, name.rfind(".weight")); };
  const std::string last = stem(second);
  ParameterDeclaration declaration = declare_weight(first, shape, initializer, 0, shape[0]);
  declaration.name = stem(first) + "_" + last.substr(last.rfind('.') + 1);
  declaration.segments.push_back({second, 0, shape[0], shape[0]});
  declaration.tensors.push_back({second, shape, initializer});
  return declaration;
}

Initializer normal_initializer(double std) {
  return [std](const RandomStream& random, std::int64_t index) {
    return std * random.normal(static_cast<std::uint64_t>(index));
  };
}

namespace {

// The part of a segment that a tensor rank holds, in rows or columns.
IndexRange local_indices(const ParameterDeclaration& declaration, const Segment& segment, int ranks, int rank) {
  if (declaration.along(Axis::tensor) != AxisPlacement::split) return {0, segment.extent};
  const std::int64_t unit = segment.extent / segment.units;
  if (declaration.padded) {
    const std::int64_t part = (segment.units + ranks - 1) / ranks;
    const std::int64_t begin = std::min(segment.units, part * rank);
    return {begin * unit, std::min(segment.units, begin + part) * unit};
  }
  const IndexRange units = partition(segment.units, ranks, rank);
  return {units.begin * unit, units.end * unit};
}

}  // namespace

LocalLayout local_layout(const ParameterDeclaration& declaration, int tensor_ranks, int tensor_rank) {
  LocalLayout layout;
  std::int64_t extent = 0;
  for (std::size_t i = 0; i < declaration.segments.size(); ++i) {
    const Segment& segment = declaration.segments[i];
    FULMEN_CHECK(segment.extent % segment.units == 0, "{}: {} units do not divide {}", segment.tensor, segment.units,
                 segment.extent);
    const IndexRange indices = local_indices(declaration, segment, tensor_ranks, tensor_rank);
    layout.segments.push_back({i, indices, extent});
    const bool pads = declaration.padded && declaration.along(Axis::tensor) == AxisPlacement::split;
    extent +=
        pads ? (segment.units + tensor_ranks - 1) / tensor_ranks * (segment.extent / segment.units) : indices.size();
  }
  const Shape& shape = declaration.tensors.front().shape;
  layout.rows = declaration.dimension == 0 ? extent : shape[0];
  layout.columns = declaration.dimension == 0 ? elements_of(shape) / shape[0] : extent;
  return layout;
}

}  // namespace fulmen
