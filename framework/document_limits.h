// How large a YAML or JSON document from outside may be. A document within is read in seconds and a gigabyte of memory;
// nothing that this program or its peers write comes near.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fulmen {

inline constexpr std::size_t longest_document = std::size_t{16} << 20;  // bytes
inline constexpr int deepest_nesting = 64;                              // of lists and maps
// Scalars, lists and maps together; a YAML alias counts as what it stands for.
inline constexpr std::int64_t most_values = 1'000'000;

}  // namespace fulmen
