// Presets of the LLaMA family. Sources: the config.json of the released checkpoints; llama-1b is the shape of the
// speed comparisons (docs/performance.md), with transnormer-1b's sizes.
#include "model/families/llama/config.h"

namespace fulmen {

namespace {

struct Preset {
  const char* name;
  std::int64_t layers, hidden, heads, kv_heads, glu, vocabulary;
  double rope_theta, norm_epsilon;
  const char* rope_type;
  double rope_factor;
  bool tied;
};

constexpr Preset presets[] = {
    {"llama-1b", 16, 2048, 16, 16, 5632, 64000, 1e4, 1e-6, "default", 1.0, false},
    {"tinyllama-1.1b", 22, 2048, 32, 4, 5632, 32000, 1e4, 1e-5, "default", 1.0, false},
    {"llama-2-7b", 32, 4096, 32, 32, 11008, 32000, 1e4, 1e-5, "default", 1.0, false},
    {"llama-2-13b", 40, 5120, 40, 40, 13824, 32000, 1e4, 1e-5, "default", 1.0, false},
    {"llama-2-70b", 80, 8192, 64, 8, 28672, 32000, 1e4, 1e-5, "default", 1.0, false},
    {"llama-3-8b", 32, 4096, 32, 8, 14336, 128256, 5e5, 1e-5, "default", 1.0, false},
    {"llama-3.1-70b", 80, 8192, 64, 8, 28672, 128256, 5e5, 1e-5, "llama3", 8.0, false},
    {"llama-3.2-1b", 16, 2048, 32, 8, 8192, 128256, 5e5, 1e-5, "llama3", 32.0, true},
};

}  // namespace

ModelFamily llama_family() {
  ModelFamily family{std::make_shared<const LlamaConfig>(), {}};
  for (const Preset& preset : presets) {
    LlamaConfig config;
    config.preset = preset.name;
    config.layers = preset.layers;
    config.hidden = preset.hidden;
    config.heads = preset.heads;
    config.kv_heads = preset.kv_heads;
    config.glu = preset.glu;
    config.vocabulary = preset.vocabulary;
    config.rope_theta = preset.rope_theta;
    config.norm_epsilon = preset.norm_epsilon;
    config.rope_type = preset.rope_type;
    config.rope_factor = preset.rope_factor;
    config.tied_head = preset.tied;
    family.presets.push_back(std::make_shared<const LlamaConfig>(std::move(config)));
  }
  return family;
}

}  // namespace fulmen
