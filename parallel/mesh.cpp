// The arithmetic of the mesh, and its communicators.
#include "parallel/mesh.h"

#include <algorithm>
#include <iterator>
#include <numeric>

#include <fmt/format.h>

#include "framework/error.h"

namespace fulmen {
namespace {

struct AxisDescription {
  Axis axis;
  std::string_view name;
  int MeshShape::*size;
};

// Those whose product is the number of ranks, the fastest first.
constexpr AxisDescription axes_with_ranks[] = {
    {Axis::tensor, "tensor", &MeshShape::tensor},
    {Axis::sequence, "sequence", &MeshShape::sequence},
    {Axis::data, "data", &MeshShape::data},
    {Axis::pipeline, "pipeline", &MeshShape::pipeline},
};

// Those that number neighbours along another axis anew, instead of ranks of their own.
struct InnerAxis : AxisDescription {
  Axis inside;
};
constexpr InnerAxis inner_axes[] = {
    {{Axis::expert, "expert", &MeshShape::expert}, Axis::data},
    {{Axis::memory, "memory", &MeshShape::memory}, Axis::data},
};
static_assert(std::size(axes_with_ranks) + std::size(inner_axes) == mesh_axes);

// In the order of messages.
constexpr Axis described[] = {Axis::data, Axis::sequence, Axis::tensor, Axis::pipeline};

const InnerAxis* inner_axis(Axis axis) {
  const auto found = std::ranges::find(inner_axes, axis, &InnerAxis::axis);
  return found == std::end(inner_axes) ? nullptr : &*found;
}

const AxisDescription& description_of(Axis axis) {
  if (const InnerAxis* inner = inner_axis(axis)) return *inner;
  const auto found = std::ranges::find(axes_with_ranks, axis, &AxisDescription::axis);
  FULMEN_CHECK(found != std::end(axes_with_ranks), "unknown mesh axis {}", static_cast<int>(axis));
  return *found;
}

// The axis that a numbering of neighbours lies inside, or the axis itself.
Axis outer(Axis axis) {
  const InnerAxis* const inner = inner_axis(axis);
  return inner == nullptr ? axis : inner->inside;
}

bool has(const std::vector<Axis>& axes, Axis axis) { return std::ranges::count(axes, axis) > 0; }

// How far apart the ranks of neighbouring coordinates are.
int stride_of(const MeshShape& shape, Axis axis) {
  int stride = 1;
  for (const AxisDescription& faster : axes_with_ranks) {
    if (faster.axis == outer(axis)) break;
    stride *= shape.size(faster.axis);
  }
  return stride;
}

void check_shape(const MeshShape& shape, int ranks) {
  for (int i = 0; i < mesh_axes; ++i)
    if (const Axis axis = static_cast<Axis>(i); shape.size(axis) < 1)
      throw UserError(fmt::format("parallel.{}", name_of(axis)), fmt::format("{} is less than 1", shape.size(axis)));
  std::int64_t product = 1;
  for (const AxisDescription& axis : axes_with_ranks)
    product = std::min<std::int64_t>(product * shape.size(axis.axis), std::int64_t{1} << 31);
  if (product != ranks)
    throw UserError("parallel", fmt::format("{} needs {} ranks, this job has {}", shape.describe(), product, ranks),
                    fmt::format("start {} ranks, or change the sizes so that their product is {}", product, ranks));
  for (const InnerAxis& axis : inner_axes)
    if (shape.size(axis.inside) % shape.size(axis.axis) != 0)
      throw UserError(fmt::format("parallel.{}", axis.name),
                      fmt::format("{} does not divide the {} ranks along {}", shape.size(axis.axis),
                                  shape.size(axis.inside), name_of(axis.inside)),
                      fmt::format("choose a number that divides them, or change parallel.{}", name_of(axis.inside)));
}

}  // namespace

std::string_view name_of(Axis axis) { return description_of(axis).name; }

std::vector<Axis> axes_inside(Axis outer) {
  std::vector<Axis> axes;
  for (const InnerAxis& axis : inner_axes)
    if (axis.inside == outer) axes.push_back(axis.axis);
  return axes;
}

int MeshShape::size(Axis axis) const { return this->*description_of(axis).size; }

int MeshShape::ranks() const {
  int product = 1;
  for (const AxisDescription& axis : axes_with_ranks) product *= size(axis.axis);
  return product;
}

std::string MeshShape::describe() const {
  std::string text;
  for (const Axis axis : described)
    text += fmt::format("{}{} {}", text.empty() ? "" : " x ", name_of(axis), size(axis));
  for (const InnerAxis& axis : inner_axes)
    if (size(axis.axis) > 1) text += fmt::format(", {} {} inside {}", axis.name, size(axis.axis), name_of(axis.inside));
  return text;
}

Mesh::Mesh(MeshShape shape, Communicator& world) : shape_(shape), world_(world) { check_shape(shape, world.size()); }

int Mesh::coordinate(Axis axis) const { return coordinate_of(world_.rank(), axis); }

int Mesh::coordinate_of(int rank, Axis axis) const {
  FULMEN_CHECK(0 <= rank && rank < shape_.ranks(), "rank {} of a mesh of {}", rank, shape_.ranks());
  return rank / stride_of(shape_, axis) % shape_.size(outer(axis)) % shape_.size(axis);
}

int Mesh::rank_at(Axis axis, int coordinate) const {
  FULMEN_CHECK(0 <= coordinate && coordinate < shape_.size(axis), "coordinate {} along {} of {}", coordinate,
               name_of(axis), shape_.describe());
  return world_.rank() + (coordinate - this->coordinate(axis)) * stride_of(shape_, axis);
}

// How many neighbours along an axis with ranks of its own a group of these axes spans.
int Mesh::span(Axis axis, const std::vector<Axis>& axes) const {
  if (has(axes, axis)) return size(axis);
  int span = 1;
  for (const InnerAxis& inner : inner_axes)
    if (inner.inside == axis && has(axes, inner.axis)) span = std::lcm(span, size(inner.axis));
  return span;
}

std::vector<int> Mesh::members(const std::vector<Axis>& axes, const std::vector<Axis>& equal) const {
  std::vector<int> ranks = {0};  // that differ from rank 0 along one axis after the other, the fastest first
  int stride = 1;
  for (const AxisDescription& each : axes_with_ranks) {
    const int neighbours = span(each.axis, axes), first = coordinate(each.axis) / neighbours * neighbours;
    std::vector<int> moved;
    for (int place = first; place < first + neighbours; ++place)
      for (const int rank : ranks) moved.push_back(rank + place * stride);
    ranks = std::move(moved);
    stride *= size(each.axis);
  }
  std::erase_if(ranks, [&](int rank) {
    return std::ranges::any_of(equal, [&](Axis axis) { return coordinate_of(rank, axis) != coordinate(axis); });
  });
  return ranks;
}

// Axes of a single rank add nothing, and an axis that spans a whole other axis has its name. So a group has the same
// name whichever axes it is asked for by.
std::string Mesh::name_along(const std::vector<Axis>& axes, const std::vector<Axis>& equal) const {
  std::string name;
  const auto add = [&](std::string_view axis) { name += fmt::format("{}{}", name.empty() ? "" : " x ", axis); };
  for (auto axis = std::rbegin(axes_with_ranks); axis != std::rend(axes_with_ranks); ++axis) {
    if (size(axis->axis) == 1) continue;
    const bool whole = span(axis->axis, axes) == size(axis->axis);
    if (whole) add(axis->name);
    for (const InnerAxis& inner : inner_axes)
      if (inner.inside == axis->axis && !whole && size(inner.axis) > 1 && has(axes, inner.axis)) add(inner.name);
  }
  for (const Axis axis : equal)
    if (size(axis) > 1) name += fmt::format(" of one {} rank", name_of(axis));
  return name.empty() ? "one rank" : name;
}

Communicator& Mesh::along(const std::vector<Axis>& axes, const std::vector<Axis>& equal) {
  return subgroup(members(axes, equal), name_along(axes, equal));
}

Communicator& Mesh::among(Axis axis, const std::vector<int>& coordinates) {
  std::vector<int> ranks;
  for (const int coordinate : coordinates) ranks.push_back(rank_at(axis, coordinate));
  FULMEN_CHECK(std::find(ranks.begin(), ranks.end(), world_.rank()) != ranks.end(),
               "rank {} asks for a group along {} without itself", world_.rank(), name_of(axis));
  return subgroup(ranks, fmt::format("{} {}", name_of(axis), fmt::join(coordinates, "+")));
}

Communicator& Mesh::subgroup(const std::vector<int>& ranks, const std::string& name) {
  std::unique_ptr<Communicator>& group = groups_[ranks];
  if (!group) {
    group = world_.subgroup(ranks);
    group->set_name(name);
  }
  return *group;
}

}  // namespace fulmen
