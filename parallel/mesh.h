// The mesh of ranks: a list of named axes, and a communicator for any subset of them.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace fulmen {

enum class Axis : std::uint8_t { tensor, sequence, data, pipeline };
inline constexpr int mesh_axes = 4;
std::string_view name_of(Axis axis);

// Sizes of the axes. Ranks are numbered so that tensor is fastest, then sequence, data, pipeline.
struct MeshShape {
  int tensor = 1;
  int sequence = 1;
  int data = 1;
  int pipeline = 1;

  int size(Axis axis) const;
  int ranks() const { return tensor * sequence * data * pipeline; }
  std::string describe() const;  // "data 2 x sequence 1 x tensor 2 x pipeline 2"
  friend bool operator==(const MeshShape&, const MeshShape&) = default;
};

class Mesh {
 public:
  // `world` must have shape.ranks() ranks; it must outlive the mesh.
  Mesh(MeshShape shape, Communicator& world);

  const MeshShape& shape() const { return shape_; }
  int size(Axis axis) const { return shape_.size(axis); }
  int coordinate(Axis axis) const;  // of this rank
  int coordinate_of(int rank, Axis axis) const;
  // The rank that differs from this one only in having `coordinate` along `axis`.
  int rank_at(Axis axis, int coordinate) const;
  // Ranks that share this rank's coordinates on every axis but these, in rank order.
  std::vector<int> members(const std::vector<Axis>& axes) const;

  // The communicator of members(axes), made when first asked for (collectively over its members) and kept.
  Communicator& along(const std::vector<Axis>& axes);
  Communicator& along(Axis axis) { return along(std::vector<Axis>{axis}); }
  // The communicator of those ranks along `axis` whose coordinate is listed (this rank's is); in the order listed.
  Communicator& among(Axis axis, const std::vector<int>& coordinates);
  // The communicator of these ranks of the world, this one among them, in the order listed; `name` is for messages.
  Communicator& among(const std::vector<int>& ranks, const std::string& name) { return subgroup(ranks, name); }
  Communicator& world() { return world_; }

 private:
  std::string name_along(const std::vector<Axis>& axes) const;
  Communicator& subgroup(const std::vector<int>& ranks, const std::string& name);

  MeshShape shape_;
  Communicator& world_;
  std::map<std::vector<int>, std::unique_ptr<Communicator>> groups_;
};

}  // namespace fulmen
