// MiniMax's presets: minimax-1b is the dense shape of the speed comparisons (docs/performance.md), one softmax layer in
// eight.
#include "model/families/minimax/config.h"

namespace fulmen {

namespace {

std::vector<std::string> pattern(std::int64_t layers) {
  std::vector<std::string> types;
  for (std::int64_t layer = 0; layer < layers; ++layer) types.push_back(layer % 8 == 7 ? "softmax" : "linear");
  return types;
}

}  // namespace

ModelFamily minimax_family() {
  ModelFamily family{std::make_shared<const MinimaxConfig>(), {}};
  MinimaxConfig small;
  small.preset = "minimax-1b";
  small.layers = 16;
  small.hidden = 2048;
  small.heads = 16;
  small.vocabulary = 64000;
  small.glu = 5632;
  small.layer_types = pattern(small.layers);
  family.presets.push_back(std::make_shared<const MinimaxConfig>(small));
  return family;
}

}  // namespace fulmen
