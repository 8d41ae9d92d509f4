// The order that sorts keys and leaves equal keys as they were.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace fulmen {

struct StableOrder {
  std::vector<std::int32_t> places;  // of the keys: places of smaller keys first, of equal keys the smaller place
  std::int64_t distinct = 0;         // how many different keys there are
  std::int64_t longest_run = 0;      // places of the key that most of them have
};

// The keys are not negative, and fewer than 2^31.
StableOrder stable_order(std::span<const std::int32_t> keys);

}  // namespace fulmen
