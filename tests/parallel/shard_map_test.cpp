// Buckets and shards as arithmetic: everything has one place, every element one owner, and backward's order is kept.
#include "parallel/shard_map.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "framework/error.h"
#include "framework/random.h"

namespace fulmen {
namespace {

// Layers 0 to 4 with two matrices each, and a theta (group 1) in layers 1 and 3. A table that no layer owns is declared
// first.
std::vector<MappedParameter> some_parameters() {
  std::vector<MappedParameter> list = {{"table", 0, -1, 1000}};
  for (std::int64_t layer = 0; layer < 5; ++layer) {
    list.push_back({fmt::format("layers.{}.a", layer), 0, layer, 130 + layer});
    if (layer % 2 == 1) list.push_back({fmt::format("layers.{}.theta", layer), 1, layer, 48});
    list.push_back({fmt::format("layers.{}.b", layer), 0, layer, 64});
  }
  return list;
}

void expect_sound(const ShardMap& map) {
  std::map<std::size_t, std::int64_t> ends;  // of groups
  std::vector<int> held(map.parameters().size());
  for (std::size_t b = 0; b < map.buckets().size(); ++b) {
    const ShardMap::Bucket& bucket = map.buckets()[b];
    EXPECT_EQ(bucket.begin % (parameter_alignment * map.shards()), 0);
    EXPECT_EQ(bucket.elements % (parameter_alignment * map.shards()), 0);
    EXPECT_EQ(map.part_elements(b) * map.shards(), bucket.elements);
    ends[bucket.group] = std::max(ends[bucket.group], bucket.begin + bucket.elements);
    std::int64_t end = 0;
    for (const std::size_t i : bucket.parameters) {
      ++held[i];
      EXPECT_EQ(map.place(i).bucket, b);
      EXPECT_EQ(map.place(i).offset % parameter_alignment, 0);
      EXPECT_GE(map.place(i).offset, end);
      end = map.place(i).offset + map.parameters()[i].elements;
      EXPECT_EQ(map.parameters()[i].group, bucket.group);
      EXPECT_LE(end, bucket.elements);
    }
    EXPECT_LT(bucket.elements - end, parameter_alignment * (map.shards() + 1)) << "more padding than needed";
    for (std::size_t other = 0; other < b; ++other)
      if (map.buckets()[other].group == bucket.group) {
        const ShardMap::Bucket& before = map.buckets()[other];
        EXPECT_TRUE(before.begin + before.elements <= bucket.begin || bucket.begin + bucket.elements <= before.begin);
      }
  }
  for (const int times : held) EXPECT_EQ(times, 1);
  for (const auto& [group, end] : ends) EXPECT_EQ(map.group_elements(group), end);
  // The shards own every element of every parameter once, in order.
  for (std::size_t i = 0; i < map.parameters().size(); ++i) {
    std::int64_t next = 0;
    for (int shard = 0; shard < map.shards(); ++shard) {
      const IndexRange range = map.owned(i, shard);
      if (range.size() == 0) continue;
      EXPECT_EQ(range.begin, next);
      const std::int64_t place = map.place(i).offset + range.begin, part = map.part_elements(map.place(i).bucket);
      EXPECT_EQ(place / part, shard);
      EXPECT_EQ((place + range.size() - 1) / part, shard);
      next = range.end;
    }
    EXPECT_EQ(next, map.parameters()[i].elements) << map.parameters()[i].name;
  }
}

TEST(ShardMap, EveryElementHasOnePlaceAndOneOwner) {
  for (const int shards : {1, 2, 3, 4, 7, 8, 64})
    for (const std::int64_t smallest : {1, 300, 700, 1 << 20}) {
      SCOPED_TRACE(testing::Message() << shards << " shards, buckets of " << smallest);
      expect_sound(ShardMap(some_parameters(), {shards, smallest}));
    }
}

// A group may be cut into another number of shards; its parameters lie by order, and weigh what they are said to.
TEST(ShardMap, GroupsDifferInShardsOrderAndWeight) {
  std::vector<MappedParameter> list = some_parameters();
  for (MappedParameter& parameter : list) {
    if (parameter.group == 1) parameter.order = static_cast<int>(parameter.layer);
    if (parameter.group == 0 && parameter.layer >= 0) parameter.weight = 64 * 3;
  }
  const ShardMap map(list, {.shards = 4, .smallest_bucket = 64 * 12, .group_shards = {4, 2}});
  std::vector<std::vector<std::int64_t>> layers;
  for (std::size_t b = 0; b < map.buckets().size(); ++b) {
    const ShardMap::Bucket& bucket = map.buckets()[b];
    const int shards = bucket.group == 1 ? 2 : 4;
    EXPECT_EQ(bucket.shards, shards);
    EXPECT_EQ(bucket.elements % (parameter_alignment * shards), 0);
    EXPECT_EQ(map.part_elements(b) * shards, bucket.elements);
    for (const std::size_t i : bucket.parameters) {
      std::int64_t owned = 0;
      for (int shard = 0; shard < shards; ++shard) owned += map.owned(i, shard).size();
      EXPECT_EQ(owned, list[i].elements) << list[i].name;
      EXPECT_THROW((void)map.owned(i, shards), InternalError);
    }
    if (bucket.group == 0) layers.push_back(bucket.layers);
    if (bucket.group == 1) {
      EXPECT_EQ(list[bucket.parameters.front()].layer, 1);
      EXPECT_LT(map.place(bucket.parameters.front()).offset, map.place(bucket.parameters.back()).offset);
    }
  }
  EXPECT_EQ(layers, (std::vector<std::vector<std::int64_t>>{{4, 3}, {2, 1}, {0}, {}}));
  EXPECT_NE(map.yaml(0).find(", shards: 2}"), std::string::npos) << map.yaml(0);
  EXPECT_EQ(map.yaml(0).find(", shards: 4}"), std::string::npos) << map.yaml(0);
}

TEST(ShardMap, RandomParameters) {
  const RandomStream random(11, "shard map");
  std::uint64_t next = 0;
  const auto draw = [&](std::uint64_t most) { return static_cast<std::int64_t>(random.bits(next++) % most); };
  for (int repeat = 0; repeat < 100; ++repeat) {
    std::vector<MappedParameter> list;
    for (std::int64_t i = draw(20); i >= 0; --i)
      list.push_back({fmt::format("p{}", i), static_cast<std::size_t>(draw(3)), draw(6) - 1, 1 + draw(5000)});
    expect_sound(ShardMap(list, {static_cast<int>(1 + draw(9)), 1 + draw(8000)}));
  }
}

std::vector<std::vector<std::int64_t>> layers_of(const ShardMap& map, std::size_t group) {
  std::vector<std::vector<std::int64_t>> layers;
  for (const ShardMap::Bucket& bucket : map.buckets())
    if (bucket.group == group) layers.push_back(bucket.layers);
  return layers;
}

using Layers = std::vector<std::vector<std::int64_t>>;

TEST(ShardMap, BucketsFollowBackward) {
  const ShardMap single(some_parameters(), {2, 1});
  EXPECT_EQ(layers_of(single, 0), (Layers{{4}, {3}, {2}, {1}, {0}, {}}));
  EXPECT_EQ(layers_of(single, 1), (Layers{{3}, {1}}));
  // Layers are joined until there is enough: 320 elements are a layer and a bit.
  EXPECT_EQ(layers_of(ShardMap(some_parameters(), {2, 320}), 0), (Layers{{4, 3}, {2, 1}, {0}, {}}));
  EXPECT_EQ(layers_of(ShardMap(some_parameters(), {2, 1 << 20}), 0), (Layers{{4, 3, 2, 1, 0}, {}}));
  // Over all groups: a bucket comes when the last of its layers is done.
  const ShardMap joined(some_parameters(), {2, 320});
  std::vector<std::int64_t> done;
  for (const ShardMap::Bucket& bucket : joined.buckets())
    done.push_back(bucket.layers.empty() ? -1 : bucket.layers.back());
  EXPECT_TRUE(std::ranges::is_sorted(done, std::greater<>()));
  EXPECT_EQ(joined.buckets_of(2), (std::vector<std::size_t>{1}));
  EXPECT_EQ(joined.buckets_of(1), (std::vector<std::size_t>{1, 2}));  // with its theta
  EXPECT_EQ(single.buckets_of(3).size(), 2u);
  EXPECT_TRUE(single.buckets_of(9).empty());
  EXPECT_EQ(single.first_layer(), 0);
}

TEST(ShardMap, WhatNoLayerOwnsHasABucketOfItsOwn) {
  std::vector<MappedParameter> list = some_parameters();
  list.push_back({"second table", 0, -1, 70});
  const ShardMap map(list, {3, 1 << 20});
  for (const std::size_t i : {std::size_t{0}, list.size() - 1})
    EXPECT_EQ(map.buckets()[map.place(i).bucket].parameters, std::vector<std::size_t>{i});
  // So that two stages that share it cut it alike, whatever else they hold.
  const ShardMap alone({list[0]}, {3, 1});
  EXPECT_EQ(alone.part_elements(0), map.part_elements(map.place(0).bucket));
}

TEST(ShardMap, IsPrinted) {
  const ShardMap map(some_parameters(), {4, 320});
  const std::string table = map.table(), yaml = map.yaml(2);
  EXPECT_NE(table.find("4..3"), std::string::npos) << table;
  EXPECT_EQ(std::ranges::count(table, '\n'), static_cast<std::ptrdiff_t>(map.buckets().size() + 1));
  EXPECT_NE(yaml.find("  shards: 4\n"), std::string::npos) << yaml;
  EXPECT_NE(yaml.find("table: {bucket: 4, offset: 0, elements: 1000}"), std::string::npos) << yaml;
  EXPECT_NE(yaml.find("layers: [4, 3], begin: 0, elements: 512"), std::string::npos) << yaml;
}

TEST(ShardMap, RefusesNoShards) { EXPECT_THROW(ShardMap(some_parameters(), {0, 1}), InternalError); }

}  // namespace
}  // namespace fulmen
