// GLA's folders, as flash-linear-attention has them.
#pragma once

#include "infer/hugging_face/adapter.h"

namespace fulmen {

HuggingFaceAdapter gla_adapter();

}  // namespace fulmen
