// RetNet's folders, as flash-linear-attention has them.
#pragma once

#include "infer/hugging_face/adapter.h"

namespace fulmen {

HuggingFaceAdapter retnet_adapter();

}  // namespace fulmen
