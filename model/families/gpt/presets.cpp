// Presets of the GPT family: the config.json of the released checkpoints.
#include "model/families/gpt/config.h"

namespace fulmen {

namespace {

struct Preset {
  const char* name;
  const char* norm_place;
  std::int64_t layers, hidden, heads, positions, vocabulary;
};

constexpr Preset presets[] = {
    {"gpt-1", "after", 12, 768, 12, 512, 40478},           {"gpt-2", "before", 12, 768, 12, 1024, 50257},
    {"gpt-2-medium", "before", 24, 1024, 16, 1024, 50257}, {"gpt-2-large", "before", 36, 1280, 20, 1024, 50257},
    {"gpt-2-xl", "before", 48, 1600, 25, 1024, 50257},
};

}  // namespace

ModelFamily gpt_family() {
  ModelFamily family{std::make_shared<const GptConfig>(), {}};
  for (const Preset& preset : presets) {
    GptConfig config;
    config.preset = preset.name;
    config.norm_place = preset.norm_place;
    config.layers = preset.layers;
    config.hidden = preset.hidden;
    config.heads = preset.heads;
    config.positions = preset.positions;
    config.vocabulary = preset.vocabulary;
    family.presets.push_back(std::make_shared<const GptConfig>(std::move(config)));
  }
  return family;
}

}  // namespace fulmen
