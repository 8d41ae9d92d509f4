// How extents are cut over ranks.
#include "parallel/placement.h"

#include <algorithm>

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

}  // namespace fulmen
