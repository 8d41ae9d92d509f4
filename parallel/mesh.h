// The mesh of ranks: a list of named axes, and a communicator for any subset of them, or for a part of an axis.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace fulmen {

enum class Axis : std::uint8_t { tensor, sequence, data, pipeline, expert, memory };
inline constexpr int mesh_axes = 6;
std::string_view name_of(Axis axis);
std::vector<Axis> axes_inside(Axis outer);  // those that number its neighbours anew: expert and memory inside data

// Sizes of the axes. Ranks are numbered so that tensor is fastest, then sequence, data, pipeline. Expert and memory lie
// inside data and number neighbours along it. Rank d along data is rank d % expert along expert and d % memory along
// memory. Each divides data by itself.
struct MeshShape {
  int tensor = 1;
  int sequence = 1;
  int data = 1;
  int pipeline = 1;
  int expert = 1;
  int memory = 1;

  int size(Axis axis) const;
  int ranks() const;             // for an axis inside another axis: of the outer axis
  std::string describe() const;  // "data 2 x sequence 1 x tensor 2 x pipeline 2", or "..., expert 2 inside data"
  friend bool operator==(const MeshShape&, const MeshShape&) = default;
};

class Mesh {
 public:
  // `world` must have shape.ranks() ranks; it must outlive the mesh. Throws UserError for a shape that does not fit.
  Mesh(MeshShape shape, Communicator& world);

  const MeshShape& shape() const { return shape_; }
  int size(Axis axis) const { return shape_.size(axis); }
  int rank() const { return world_.rank(); }
  int coordinate(Axis axis) const;  // of this rank
  int coordinate_of(int rank, Axis axis) const;
  // The rank that differs from this rank only in having `coordinate` along `axis`.
  int rank_at(Axis axis, int coordinate) const;
  // Ranks that share this rank's coordinates on every axis but `axes`, and its coordinates on the axes `equal`, in rank
  // order. members({data}, {expert}) are the ranks along data with this rank's place along expert. Several axes inside
  // an axis span the fewest neighbours that hold whole groups of each.
  std::vector<int> members(const std::vector<Axis>& axes, const std::vector<Axis>& equal = {}) const;

  // The communicator of members(axes, equal), made when first asked for (collectively over its members) and kept.
  Communicator& along(const std::vector<Axis>& axes, const std::vector<Axis>& equal = {});
  Communicator& along(Axis axis) { return along(std::vector<Axis>{axis}); }
  // The communicator of those ranks along `axis` whose coordinate is listed (this rank's is); in the order listed.
  Communicator& among(Axis axis, const std::vector<int>& coordinates);
  // The communicator of these ranks of the world, this rank among them, in the order listed; `name` is for messages.
  Communicator& among(const std::vector<int>& ranks, const std::string& name) { return subgroup(ranks, name); }
  Communicator& world() { return world_; }

 private:
  int span(Axis axis, const std::vector<Axis>& axes) const;
  std::string name_along(const std::vector<Axis>& axes, const std::vector<Axis>& equal) const;
  Communicator& subgroup(const std::vector<int>& ranks, const std::string& name);

  MeshShape shape_;
  Communicator& world_;
  std::map<std::vector<int>, std::unique_ptr<Communicator>> groups_;
};

}  // namespace fulmen
