// Sorts keys and places as one number, in which a place breaks the tie of equal keys.
#include "framework/stable_order.h"

#include <algorithm>
#include <limits>

#include "framework/error.h"

namespace fulmen {

StableOrder stable_order(std::span<const std::int32_t> keys) {
  FULMEN_CHECK(keys.size() <= std::numeric_limits<std::int32_t>::max(), "{} keys", keys.size());
  std::vector<std::uint64_t> both(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    FULMEN_CHECK(keys[i] >= 0, "key {} is {}", i, keys[i]);
    both[i] = static_cast<std::uint64_t>(keys[i]) << 32 | i;
  }
  std::ranges::sort(both);
  StableOrder order;
  order.places.reserve(both.size());
  std::int64_t run = 0;
  for (std::size_t i = 0; i < both.size(); ++i) {
    order.places.push_back(static_cast<std::int32_t>(both[i] & 0xffffffffu));
    const bool begins = i == 0 || both[i] >> 32 != both[i - 1] >> 32;
    if (begins) ++order.distinct;
    run = begins ? 1 : run + 1;
    order.longest_run = std::max(order.longest_run, run);
  }
  return order;
}

}  // namespace fulmen
