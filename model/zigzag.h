// How causal attention is shared out evenly over the ranks that hold slices of a sequence. Each slice is cut into two
// halves. Rank r works on an early and a late half: r and 2R - 1 - r of all 2R. Every rank then meets as many keys as
// any other. The tokens stay where they are; queries, keys and values travel to who works on them.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "parallel/placement.h"

namespace fulmen {

class Zigzag {
 public:
  // starts: slice i holds tokens [starts[i], starts[i + 1]).
  explicit Zigzag(std::vector<std::int64_t> starts) : starts_(std::move(starts)) {}

  int ranks() const { return static_cast<int>(starts_.size()) - 1; }
  int halves() const { return 2 * ranks(); }
  // Tokens of a half, in the sample.
  IndexRange tokens(int half) const {
    const auto slice = static_cast<std::size_t>(half / 2);
    const std::int64_t begin = starts_[slice], end = starts_[slice + 1], middle = begin + (end - begin + 1) / 2;
    return half % 2 == 0 ? IndexRange{begin, middle} : IndexRange{middle, end};
  }
  // The same counted from the slice's first token.
  IndexRange rows(int half) const {
    const IndexRange all = tokens(half);
    const std::int64_t begin = starts_[static_cast<std::size_t>(half / 2)];
    return {all.begin - begin, all.end - begin};
  }
  static int home(int half) { return half / 2; }
  int worker(int half) const { return half < ranks() ? half : halves() - 1 - half; }
  // The early and the late half that a rank works on.
  std::array<int, 2> work(int rank) const { return {rank, halves() - 1 - rank}; }
  // Which of the two a half is: 0, early, or 1, late.
  std::size_t index(int half) const { return half < ranks() ? 0 : 1; }
  // Which of its two halves a rank begins with: the half that it holds, so that the other may arrive meanwhile.
  std::size_t begins_with(int rank) const { return home(work(rank)[1]) == rank ? 1 : 0; }

 private:
  std::vector<std::int64_t> starts_;
};

}  // namespace fulmen
