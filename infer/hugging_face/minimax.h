// MiniMax's folders, as transformers has them.
#pragma once

#include "infer/hugging_face/adapter.h"

namespace fulmen {

HuggingFaceAdapter minimax_adapter();

}  // namespace fulmen
