// Which paths of softmax attention this build has for GPUs.
#pragma once

#include <string>

namespace fulmen::cuda {

std::string softmax_attention_paths();

}  // namespace fulmen::cuda
