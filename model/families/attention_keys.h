// Refusals that configurations of families with heads of queries, keys and values share.
#pragma once

#include <cstdint>

namespace fulmen {

// Throws UserError naming model.KEY where kv_heads do not divide heads, or heads do not divide hidden and no head width
// (0) is given.
void check_heads(std::int64_t hidden, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_width);
// Throws UserError naming parallel.tensor where so many tensor ranks do not divide the heads. Also where neither they
// nor the heads of keys and values divide the other.
void check_head_shares(std::int64_t heads, std::int64_t kv_heads, int shares);

}  // namespace fulmen
