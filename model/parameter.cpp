// Declarations of parameters and their local layout.
#include "model/parameter.h"

#include <algorithm>

#include <fmt/format.h>

namespace fulmen {

const LogicalTensor& ParameterDeclaration::tensor(const std::string& tensor_name) const {
  const auto found =
      std::find_if(tensors.begin(), tensors.end(), [&](const LogicalTensor& t) { return t.name == tensor_name; });
  FULMEN_CHECK(found != tensors.end(), "parameter {} has no tensor {}", name, tensor_name);
  return *found;
}

std::vector<Axis> ParameterDeclaration::owned_along() const {
  std::vector<Axis> axes;
  for (const Axis axis : axes_inside(Axis::data))
    if (along(axis) == AxisPlacement::owned) axes.push_back(axis);
  return axes;
}

std::optional<Axis> ParameterDeclaration::cut_along() const {
  const std::vector<Axis> owners = owned_along();
  if (items == 0 && !owners.empty()) return owners.front();
  return along(Axis::tensor) == AxisPlacement::split ? std::optional(Axis::tensor) : std::nullopt;
}

std::array<AxisPlacement, mesh_axes> weight_placement(AxisPlacement tensor) {
  std::array<AxisPlacement, mesh_axes> placement{};
  placement.fill(AxisPlacement::replicated);
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

ParameterDeclaration declare_joined(const std::string& name, const std::vector<JoinedWeight>& weights,
                                    std::int64_t columns, const Initializer& initializer) {
  ParameterDeclaration declaration = declare_weight(name, {1, columns}, initializer, 0, 1);
  declaration.segments.clear();
  declaration.tensors.clear();
  for (const JoinedWeight& weight : weights) {
    declaration.segments.push_back({weight.name, 0, weight.rows, weight.units, weight.copies});
    declaration.tensors.push_back({weight.name, {weight.rows, columns}, initializer});
  }
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

ParameterDeclaration declare_stack(const std::string& name, Shape shape, Initializer initializer, int dimension,
                                   std::int64_t units, Axis owner) {
  FULMEN_CHECK(shape.size() == 3, "{}: a stack of shape {}", name, to_string(shape));
  const std::int64_t items = shape[0];
  ParameterDeclaration declaration = declare_weight(name, {shape[1], shape[2]}, initializer, dimension, units);
  declaration.items = items;
  declaration.tensors = {{name, std::move(shape), std::move(initializer)}};
  declaration.place(owner, AxisPlacement::owned);
  return declaration;
}

ParameterDeclaration declare_pool(const std::string& name, Shape shape, Initializer initializer, int dimension,
                                  Axis owner) {
  ParameterDeclaration declaration = declare_weight(name, std::move(shape), std::move(initializer), dimension, 0);
  declaration.segments.front().units = declaration.segments.front().extent;
  declaration.group.gradient = GradientForm::sum;
  declaration.place(owner, AxisPlacement::owned);
  return declaration;
}

Initializer normal_initializer(double std) {
  return [std](const RandomStream& random, std::int64_t index) {
    return std * random.normal(static_cast<std::uint64_t>(index));
  };
}

namespace {

// Ranks along an axis, and the place among them.
struct Place {
  int ranks = 1, rank = 0;
};

Place place_along(std::optional<Axis> axis, const Mesh& mesh, int rank) {
  return axis ? Place{mesh.size(*axis), mesh.coordinate_of(rank, *axis)} : Place{};
}

std::int64_t part_of(std::int64_t units, int ranks) { return (units + ranks - 1) / ranks; }

void check(const ParameterDeclaration& declaration, const Mesh& mesh) {
  const std::vector<Axis> owners = declaration.owned_along();
  FULMEN_CHECK(owners.size() <= 1, "{} is owned along several axes", declaration.name);
  FULMEN_CHECK(declaration.items == 0 || declaration.dimension == 0 || declaration.segments.size() == 1,
               "{}: several segments along the columns of a stack", declaration.name);
  FULMEN_CHECK(declaration.cut_along().value_or(Axis::tensor) == Axis::tensor ||
                   declaration.along(Axis::tensor) != AxisPlacement::split,
               "{} is cut over {} and over tensor", declaration.name, name_of(*declaration.cut_along()));
  for (const Axis axis : owners) {
    const std::int64_t owned = declaration.items > 0 ? declaration.items : declaration.segments.front().units;
    if (owned % mesh.size(axis) == 0) continue;
    throw UserError(fmt::format("parallel.{}", name_of(axis)),
                    fmt::format("{} ranks do not divide the {} {} of {}", mesh.size(axis), owned,
                                declaration.items > 0        ? "items"
                                : declaration.dimension == 0 ? "rows"
                                                             : "columns",
                                declaration.name),
                    fmt::format("choose a divisor of {}", owned));
  }
}

}  // namespace

LocalLayout local_layout(const ParameterDeclaration& declaration, const Mesh& mesh) {
  return local_layout(declaration, mesh, mesh.rank());
}

LocalLayout local_layout(const ParameterDeclaration& declaration, const Mesh& mesh, int rank) {
  check(declaration, mesh);
  const std::optional<Axis> axis = declaration.cut_along();
  const Place place = place_along(axis, mesh, rank);
  LocalLayout layout;
  std::int64_t extent = 0;
  for (std::size_t i = 0; i < declaration.segments.size(); ++i) {
    const Segment& segment = declaration.segments[i];
    FULMEN_CHECK(segment.extent % segment.units == 0, "{}: {} units do not divide {}", segment.tensor, segment.units,
                 segment.extent);
    FULMEN_CHECK(!segment.copies || (declaration.dimension == 0 && declaration.items == 0 && axis == Axis::tensor),
                 "{}: copies along columns, in a stack or of what is not split", segment.tensor);
    const std::int64_t unit = segment.extent / segment.units;
    HeldUnits held = held_units(segment, place.ranks, place.rank);
    if (declaration.padded && axis) {
      const std::int64_t part = part_of(segment.units, place.ranks);
      const std::int64_t begin = std::min(segment.units, part * place.rank);
      held.units = {begin, std::min(segment.units, begin + part)};
    }
    const bool first = held.holders.front() == place.rank;
    layout.segments.push_back(
        {i, {held.units.begin * unit, held.units.end * unit}, extent, std::move(held.holders), first});
    extent += (declaration.padded && axis ? part_of(segment.units, place.ranks) : held.units.size()) * unit;
  }
  const Shape& shape = declaration.tensors.front().shape;
  const std::size_t first = declaration.items > 0 ? 1 : 0;  // dimension of the rows
  const std::int64_t all_columns = elements_of(shape) / (declaration.items > 0 ? shape[0] * shape[1] : shape[0]);
  layout.rows = declaration.dimension == 0 ? extent : shape[first];
  layout.columns = declaration.dimension == 0 ? all_columns : extent;
  if (declaration.items > 0) {
    const std::vector<Axis> owners = declaration.owned_along();
    const Place owner = place_along(owners.empty() ? std::nullopt : std::optional(owners.front()), mesh, rank);
    layout.items = partition(declaration.items, owner.ranks, owner.rank);
    layout.rows *= layout.items.size();
  }
  return layout;
}

}  // namespace fulmen
