// The LLaMA family's folders, as transformers has them.
#pragma once

#include "infer/hugging_face/adapter.h"

namespace fulmen {

HuggingFaceAdapter llama_adapter();

}  // namespace fulmen
