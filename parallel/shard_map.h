// How the parameters of one rank lie in flat memory, and in which buckets their gradients are reduced. Also which part
// of every bucket each rank of a shard group owns. An immutable value: printed, saved and tested, and read by all who
// move shards.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "parallel/placement.h"

namespace fulmen {

inline constexpr std::int64_t parameter_alignment = 64;  // elements: where parameters and parts begin

// A parameter as the map sees it.
struct MappedParameter {
  std::string name;
  std::size_t group = 0;      // parameters of a group share flat memory
  std::int64_t layer = -1;    // that alone uses it; -1: several places of a stage do
  std::int64_t elements = 0;  // on this rank
  int order = 0;              // in a bucket parameters lie by order, then from the last layer to the first
  // Its weight where buckets are cut, so that ranks with unequal parts cut alike; -1: its elements.
  std::int64_t weight = -1;
};

struct ShardMapOptions {
  int shards = 1;                      // ranks that share a bucket
  std::int64_t smallest_bucket = 1;    // elements: layers are joined until a bucket has as many; a layer is never cut
  std::vector<int> group_shards = {};  // by group, where groups differ; empty: all have `shards`
};

class ShardMap {
 public:
  struct Place {
    std::size_t bucket = 0;
    std::int64_t offset = 0;  // in the bucket
  };
  // A run of a group's flat memory that is reduced and gathered in one call. Parameters begin at multiples of the
  // alignment; the end is padded so that the shards divide it into multiples of the alignment.
  struct Bucket {
    std::size_t group = 0;
    std::int64_t begin = 0;  // in the group's flat memory
    std::int64_t elements = 0;
    int shards = 1;                       // that it is cut into
    std::vector<std::int64_t> layers;     // in the order of backward; empty for a parameter of no single layer
    std::vector<std::size_t> parameters;  // in the order of their offsets
  };

  ShardMap() = default;
  // Buckets are in the order in which a backward pass completes their gradients: the last layer first. At the end each
  // parameter that no single layer uses has a bucket, so that stages which share it cut it alike.
  ShardMap(std::vector<MappedParameter> parameters, const ShardMapOptions& options);

  int shards() const { return shards_; }  // of the groups that the options do not name
  const std::vector<MappedParameter>& parameters() const { return parameters_; }
  const std::vector<Bucket>& buckets() const { return buckets_; }
  const Place& place(std::size_t parameter) const { return places_[parameter]; }
  std::int64_t group_elements(std::size_t group) const;  // with padding
  // The buckets that hold parameters of a layer; none for a layer that is not here.
  const std::vector<std::size_t>& buckets_of(std::int64_t layer) const;
  std::int64_t first_layer() const { return of_layer_.empty() ? -1 : of_layer_.begin()->first; }

  // Elements of a bucket that each rank owns: rank r has part r, [r * part, (r + 1) * part).
  std::int64_t part_elements(std::size_t bucket) const { return buckets_[bucket].elements / buckets_[bucket].shards; }
  // Elements of a parameter, counted from its first, that lie in shard r's part of its bucket; empty where none does.
  IndexRange owned(std::size_t parameter, int shard) const;

  // A line per bucket: group, layers, place, elements, elements of a part, parameters.
  std::string table() const;
  // The same and every parameter's place as YAML, its lines indented by `indent` spaces.
  std::string yaml(int indent) const;

 private:
  std::vector<MappedParameter> parameters_;
  int shards_ = 1;
  std::vector<Bucket> buckets_;
  std::vector<Place> places_;
  std::map<std::int64_t, std::vector<std::size_t>> of_layer_;  // buckets
};

}  // namespace fulmen
