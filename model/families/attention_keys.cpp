// Refusals that configurations of families with heads share.
#include "model/families/attention_keys.h"

#include "framework/error.h"
#include "framework/text.h"

namespace fulmen {

void check_heads(std::int64_t hidden, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_width) {
  if (kv_heads < 1 || heads % kv_heads != 0)
    throw UserError("model.kv_heads", fmt::format("{} does not divide the {} heads", kv_heads, heads),
                    "choose a divisor of model.heads");
  if (head_width == 0 && hidden % heads != 0)
    throw UserError("model.heads", fmt::format("{} does not divide hidden {}", heads, hidden),
                    "choose a number of heads that divides the hidden width, or give model.head_width");
}

void check_head_shares(std::int64_t heads, std::int64_t kv_heads, int shares) {
  if (heads % shares != 0)
    throw UserError("parallel.tensor", fmt::format("{} tensor ranks do not divide {} heads", shares, heads),
                    "choose a number that divides model.heads");
  if (kv_heads % shares != 0 && shares % kv_heads != 0)
    throw UserError(
        "parallel.tensor",
        fmt::format("{} tensor ranks and {} heads of keys and values: neither divides the other", shares, kv_heads),
        "choose a number of tensor ranks that divides model.kv_heads, or that it divides");
}

}  // namespace fulmen
