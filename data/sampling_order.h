// The order of samples: a pure function of (seed, epoch, index), the same for every layout, with no index file. A keyed
// bijection on [0, samples): a Feistel network over the next power of four, walked until it lands inside.
#pragma once

#include <cstdint>

namespace fulmen {

class SamplingOrder {
 public:
  // samples >= 1. Without shuffling the order is 0, 1, 2, ... in every epoch.
  SamplingOrder(std::int64_t samples, std::uint64_t seed, bool shuffle);
  // The sample at place `index` (from 0, running on through the epochs) of the endless sequence.
  std::int64_t at(std::int64_t index) const;

 private:
  std::int64_t samples_;
  std::uint64_t seed_;
  bool shuffle_;
  int half_bits_;
};

}  // namespace fulmen
