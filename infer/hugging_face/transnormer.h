// config.json of the released TransNormerLLM checkpoints.
#pragma once

#include "infer/hugging_face/adapter.h"

namespace fulmen {

HuggingFaceAdapter transnormer_adapter();

}  // namespace fulmen
