// RetNet's presets: the configurations of flash-linear-attention's released checkpoints (retnet-1.3B-100B,
// retnet-2.7B-100B).
#include "model/families/retnet/config.h"

namespace fulmen {

namespace {

struct Preset {
  const char* name;
  std::int64_t layers, hidden, heads, value_width, glu, vocabulary;
};

constexpr Preset presets[] = {
    {"retnet-1.3b", 24, 2048, 8, 4096, 2816, 32000},
    {"retnet-2.7b", 32, 2560, 10, 5120, 3584, 32000},
};

}  // namespace

ModelFamily retnet_family() {
  ModelFamily family{std::make_shared<const RetnetConfig>(), {}};
  for (const Preset& preset : presets) {
    RetnetConfig config;
    config.preset = preset.name;
    config.layers = preset.layers;
    config.hidden = preset.hidden;
    config.heads = preset.heads;
    config.value_width = preset.value_width;
    config.glu = preset.glu;
    config.vocabulary = preset.vocabulary;
    config.head_norm_gain = true;
    config.rotation = "rope";
    family.presets.push_back(std::make_shared<const RetnetConfig>(std::move(config)));
  }
  return family;
}

}  // namespace fulmen
