// How extents are cut over ranks.
#include "parallel/placement.h"

#include <algorithm>
#include <numeric>

#include <fmt/format.h>

#include "framework/error.h"

namespace fulmen {

IndexRange partition(std::int64_t count, int parts, int index) {
  FULMEN_CHECK(count >= 0 && parts >= 1 && 0 <= index && index < parts, "part {} of {} of {} units", index, parts,
               count);
  const std::int64_t smaller = count / parts;
  const std::int64_t larger_parts = count % parts;
  const std::int64_t begin = index * smaller + std::min<std::int64_t>(index, larger_parts);
  return {begin, begin + smaller + (index < larger_parts ? 1 : 0)};
}

HeldUnits held_units(const Segment& segment, int ranks, int rank) {
  if (!segment.copies || segment.units % ranks == 0) return {partition(segment.units, ranks, rank), {rank}};
  if (ranks % segment.units != 0)
    throw UserError("parallel.tensor",
                    fmt::format("{} ranks and the {} heads of {}: neither number divides the other", ranks,
                                segment.units, segment.tensor),
                    fmt::format("choose a divisor or a multiple of {}", segment.units));
  const int copies = ranks / static_cast<int>(segment.units), unit = rank / copies;
  std::vector<int> holders(static_cast<std::size_t>(copies));
  std::iota(holders.begin(), holders.end(), unit * copies);
  return {{unit, unit + 1}, std::move(holders)};
}

}  // namespace fulmen
