// The layouts that layouts_test compares with one rank: what can be combined, a covering array of it, and the whole.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>
#include <vector>

#include "parallel/layout.h"
#include "tests/train/covering_array.h"

namespace fulmen {

inline constexpr std::int64_t matrix_global_batch = 24, matrix_sequence_length = 13;

struct LayoutCase {
  MeshShape shape;
  std::string model;  // of matrix_models()
  int micro_batches = 1;
  std::string schedule = "gpipe";
  int chunks = 1;
  bool uneven = false;  // stages of unequal length
  bool split = false;   // parallel.tensor_sequence_split
  int zero = 0;
  std::string zero_group = "all";
  std::string recompute = "none";
  std::string overlap = "none";
  std::int64_t bucket_elements = 1;
  bool documents = false;

  // The keys of the configuration but for the stages' lengths.
  LayoutConfig layout() const;
  std::string describe() const;
  friend void PrintTo(const LayoutCase& layout, std::ostream* out) { *out << layout.describe(); }
};

const CombinationSpace& layout_space();
LayoutCase layout_of(const Combination& combination);

// At least 200 layouts of up to 8 ranks in which every possible pair of values meets, some of which have three axes.
std::vector<Combination> layout_combinations();
std::vector<LayoutCase> layout_matrix();
// The layouts of up to 8 ranks, counted from 0, whose number leaves `shard` when divided by `shards`.
std::vector<LayoutCase> layout_shard(std::int64_t shard, std::int64_t shards);

// At most `count` layouts of exactly that many ranks, from all over the whole product.
std::vector<LayoutCase> layouts_of_ranks(int ranks, std::size_t count);

}  // namespace fulmen
