// The arithmetic of the mesh, and its communicators.
#include "parallel/mesh.h"

#include <algorithm>

#include <fmt/format.h>

#include "framework/error.h"

namespace fulmen {
namespace {

constexpr Axis fastest_first[mesh_axes] = {Axis::tensor, Axis::sequence, Axis::data, Axis::pipeline};

// How far apart the ranks of neighbouring coordinates are.
int stride_of(const MeshShape& shape, Axis axis) {
  int stride = 1;
  for (const Axis faster : fastest_first) {
    if (faster == axis) break;
    stride *= shape.size(faster);
  }
  return stride;
}

void check_shape(const MeshShape& shape, int ranks) {
  std::int64_t product = 1;
  for (const Axis axis : fastest_first) {
    if (shape.size(axis) < 1)
      throw UserError(fmt::format("parallel.{}", name_of(axis)), fmt::format("{} is less than 1", shape.size(axis)));
    product = std::min<std::int64_t>(product * shape.size(axis), std::int64_t{1} << 31);
  }
  if (product == ranks) return;
  throw UserError("parallel", fmt::format("{} needs {} ranks, this job has {}", shape.describe(), product, ranks),
                  fmt::format("start {} ranks, or change the sizes so that their product is {}", product, ranks));
}

}  // namespace

std::string_view name_of(Axis axis) {
  switch (axis) {
    case Axis::tensor: return "tensor";
    case Axis::sequence: return "sequence";
    case Axis::data: return "data";
    case Axis::pipeline: return "pipeline";
  }
  throw InternalError("unknown mesh axis");
}

int MeshShape::size(Axis axis) const {
  switch (axis) {
    case Axis::tensor: return tensor;
    case Axis::sequence: return sequence;
    case Axis::data: return data;
    case Axis::pipeline: return pipeline;
  }
  throw InternalError("unknown mesh axis");
}

std::string MeshShape::describe() const {
  return fmt::format("data {} x sequence {} x tensor {} x pipeline {}", data, sequence, tensor, pipeline);
}

Mesh::Mesh(MeshShape shape, Communicator& world) : shape_(shape), world_(world) { check_shape(shape, world.size()); }

int Mesh::coordinate(Axis axis) const { return coordinate_of(world_.rank(), axis); }

int Mesh::coordinate_of(int rank, Axis axis) const {
  FULMEN_CHECK(0 <= rank && rank < shape_.ranks(), "rank {} of a mesh of {}", rank, shape_.ranks());
  return rank / stride_of(shape_, axis) % shape_.size(axis);
}

int Mesh::rank_at(Axis axis, int coordinate) const {
  FULMEN_CHECK(0 <= coordinate && coordinate < shape_.size(axis), "coordinate {} along {} of {}", coordinate,
               name_of(axis), shape_.describe());
  return world_.rank() + (coordinate - this->coordinate(axis)) * stride_of(shape_, axis);
}

std::vector<int> Mesh::members(const std::vector<Axis>& axes) const {
  const auto differs_elsewhere = [&](int rank) {
    return std::any_of(std::begin(fastest_first), std::end(fastest_first), [&](Axis axis) {
      const bool spanned = std::find(axes.begin(), axes.end(), axis) != axes.end();
      return !spanned && coordinate_of(rank, axis) != coordinate(axis);
    });
  };
  std::vector<int> ranks;
  for (int rank = 0; rank < shape_.ranks(); ++rank)
    if (!differs_elsewhere(rank)) ranks.push_back(rank);
  return ranks;
}

// Axes of one rank add nothing, so that a group has the same name whichever axes it is asked for by.
std::string Mesh::name_along(const std::vector<Axis>& axes) const {
  std::string name;
  for (const Axis axis : {Axis::pipeline, Axis::data, Axis::sequence, Axis::tensor})
    if (size(axis) > 1 && std::find(axes.begin(), axes.end(), axis) != axes.end())
      name += fmt::format("{}{}", name.empty() ? "" : " x ", name_of(axis));
  return name.empty() ? "one rank" : name;
}

Communicator& Mesh::along(const std::vector<Axis>& axes) { return subgroup(members(axes), name_along(axes)); }

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
