// GPT-1's and GPT-2's folders, as transformers has them.
#pragma once

#include "infer/hugging_face/adapter.h"

namespace fulmen {

HuggingFaceAdapter gpt_adapter();

}  // namespace fulmen
