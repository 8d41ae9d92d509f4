// TransNormerLLM's presets. Sources: the released checkpoints' configurations and index sizes. The shapes of 13B, 65B
// and 175B are from memory of arXiv 2307.14995, table 10 (unconfirmed), with glu = 256 * ceil(8/3 hidden / 256).
#include "model/families/transnormer/config.h"

namespace fulmen {

namespace {

struct Preset {
  const char* name;
  const char* variant;
  std::int64_t layers, hidden, heads, glu, vocabulary, gate_rank;
};

constexpr Preset presets[] = {
    {"transnormer-385m", "tnl1", 24, 1024, 8, 2816, 64000, 0},
    {"transnormer-1b", "tnl1", 16, 2048, 16, 5632, 64000, 0},
    {"transnormer-3b", "tnl1", 32, 2560, 20, 6912, 64000, 0},
    {"transnormer-7b", "tnl1", 30, 4096, 32, 11008, 64000, 0},
    {"transnormer-13b", "tnl1", 36, 5120, 40, 13824, 64000, 0},
    {"transnormer-65b", "tnl1", 72, 8192, 64, 22016, 64000, 0},
    {"transnormer-175b", "tnl1", 88, 12288, 96, 32768, 64000, 0},
    {"tnl3-410m", "tnl3", 25, 1024, 8, 2816, 100280, 128},
    {"tnl3-15b", "tnl3", 42, 5120, 40, 15360, 100280, 16},
};

}  // namespace

ModelFamily transnormer_family() {
  ModelFamily family{std::make_shared<const TransnormerConfig>(), {}};
  for (const Preset& preset : presets) {
    TransnormerConfig config;
    config.preset = preset.name;
    config.variant = preset.variant;
    config.layers = preset.layers;
    config.hidden = preset.hidden;
    config.heads = preset.heads;
    config.glu = preset.glu;
    config.vocabulary = preset.vocabulary;
    config.gate_rank = preset.gate_rank;
    family.presets.push_back(std::make_shared<const TransnormerConfig>(std::move(config)));
  }
  return family;
}

}  // namespace fulmen
