// The arithmetic of buckets and shards.
#include "parallel/shard_map.h"

#include <algorithm>
#include <numeric>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "framework/error.h"

namespace fulmen {

namespace {

std::int64_t round_up(std::int64_t n, std::int64_t unit) { return (n + unit - 1) / unit * unit; }

std::int64_t aligned(std::int64_t n) { return round_up(n, parameter_alignment); }

// The parameters of one group as buckets that have no place yet: layers from the last to the first, then parameters of
// no layer.
std::vector<ShardMap::Bucket> fill_buckets(const std::vector<MappedParameter>& parameters, std::size_t group,
                                           std::int64_t smallest) {
  std::map<std::int64_t, std::vector<std::size_t>, std::greater<>> by_layer;
  std::vector<std::size_t> of_no_layer;
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i].group == group)
      (parameters[i].layer < 0 ? of_no_layer : by_layer[parameters[i].layer]).push_back(i);

  std::vector<ShardMap::Bucket> buckets;
  std::int64_t filled = smallest;  // of the last bucket
  for (const auto& [layer, members] : by_layer) {
    if (filled >= smallest) {
      buckets.emplace_back();
      filled = 0;
    }
    buckets.back().layers.push_back(layer);
    for (const std::size_t i : members) {
      buckets.back().parameters.push_back(i);
      filled += aligned(parameters[i].weight < 0 ? parameters[i].elements : parameters[i].weight);
    }
  }
  for (ShardMap::Bucket& bucket : buckets)
    std::ranges::stable_sort(bucket.parameters, {}, [&](std::size_t i) { return parameters[i].order; });
  for (const std::size_t i : of_no_layer) buckets.emplace_back().parameters = {i};
  for (ShardMap::Bucket& bucket : buckets) bucket.group = group;
  return buckets;
}

// The place in the order of backward: a bucket is complete with the lowest of its layers.
std::int64_t completed_by(const ShardMap::Bucket& bucket) { return bucket.layers.empty() ? -1 : bucket.layers.back(); }

}  // namespace

ShardMap::ShardMap(std::vector<MappedParameter> parameters, const ShardMapOptions& options)
    : parameters_(std::move(parameters)), shards_(options.shards), places_(parameters_.size()) {
  FULMEN_CHECK(options.shards >= 1 && options.smallest_bucket >= 1, "{} shards, buckets of {}", options.shards,
               options.smallest_bucket);
  std::set<std::size_t> groups;
  for (const MappedParameter& parameter : parameters_) groups.insert(parameter.group);
  for (const std::size_t group : groups) {
    std::int64_t begin = 0;
    for (Bucket& bucket : fill_buckets(parameters_, group, options.smallest_bucket)) {
      bucket.begin = begin;
      bucket.shards = options.group_shards.empty() ? shards_ : options.group_shards.at(group);
      for (const std::size_t i : bucket.parameters) {
        places_[i].offset = bucket.elements;
        bucket.elements += aligned(parameters_[i].elements);
      }
      bucket.elements = round_up(bucket.elements, parameter_alignment * bucket.shards);
      begin += bucket.elements;
      buckets_.push_back(std::move(bucket));
    }
  }
  std::ranges::stable_sort(buckets_, std::greater<>(), completed_by);
  for (std::size_t b = 0; b < buckets_.size(); ++b)
    for (const std::size_t i : buckets_[b].parameters) places_[i].bucket = b;
  for (std::size_t b = 0; b < buckets_.size(); ++b)
    for (const std::int64_t layer : buckets_[b].layers) of_layer_[layer].push_back(b);
}

const std::vector<std::size_t>& ShardMap::buckets_of(std::int64_t layer) const {
  static const std::vector<std::size_t> none;
  const auto found = of_layer_.find(layer);
  return found == of_layer_.end() ? none : found->second;
}

std::int64_t ShardMap::group_elements(std::size_t group) const {
  std::int64_t elements = 0;
  for (const Bucket& bucket : buckets_)
    if (bucket.group == group) elements += bucket.elements;
  return elements;
}

IndexRange ShardMap::owned(std::size_t parameter, int shard) const {
  const Place& place = places_[parameter];
  const int shards = buckets_[place.bucket].shards;
  FULMEN_CHECK(0 <= shard && shard < shards, "shard {} of {}", shard, shards);
  const std::int64_t part = part_elements(place.bucket), elements = parameters_[parameter].elements;
  const std::int64_t begin = std::clamp<std::int64_t>(shard * part - place.offset, 0, elements);
  return {begin, std::clamp<std::int64_t>((shard + 1) * part - place.offset, begin, elements)};
}

std::string ShardMap::table() const {
  std::string text = fmt::format("{:>6} {:>5} {:>12} {:>14} {:>12} {:>12} {:>10}\n", "bucket", "group", "layers",
                                 "begin", "elements", "a part", "parameters");
  for (std::size_t b = 0; b < buckets_.size(); ++b) {
    const Bucket& bucket = buckets_[b];
    const std::string layers = bucket.layers.empty() ? "-"
                               : bucket.layers.size() == 1
                                   ? std::to_string(bucket.layers[0])
                                   : fmt::format("{}..{}", bucket.layers.front(), bucket.layers.back());
    text += fmt::format("{:>6} {:>5} {:>12} {:>14} {:>12} {:>12} {:>10}\n", b, bucket.group, layers, bucket.begin,
                        bucket.elements, part_elements(b), bucket.parameters.size());
  }
  return text;
}

std::string ShardMap::yaml(int indent) const {
  const std::string space(static_cast<std::size_t>(indent), ' ');
  std::string text = fmt::format("{0}shards: {1}\n{0}buckets:\n", space, shards_);
  for (const Bucket& bucket : buckets_) {
    text += fmt::format("{}  - {{group: {}, layers: [{}], begin: {}, elements: {}{}}}\n", space, bucket.group,
                        fmt::join(bucket.layers, ", "), bucket.begin, bucket.elements,
                        bucket.shards == shards_ ? "" : fmt::format(", shards: {}", bucket.shards));
  }
  text += space + "parameters:\n";
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    text += fmt::format("{}  {}: {{bucket: {}, offset: {}, elements: {}}}\n", space, parameters_[i].name,
                        places_[i].bucket, places_[i].offset, parameters_[i].elements);
  return text;
}

}  // namespace fulmen
