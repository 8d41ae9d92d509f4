// GLA's preset: the configuration of flash-linear-attention's released checkpoint gla-1.3B-100B.
#include "model/families/gla/config.h"

namespace fulmen {

ModelFamily gla_family() {
  ModelFamily family{std::make_shared<const GlaConfig>(), {}};
  GlaConfig config;
  config.preset = "gla-1.3b";
  config.layers = 24;
  config.hidden = 2048;
  config.heads = 4;
  config.glu = 5632;
  config.vocabulary = 32000;
  family.presets.push_back(std::make_shared<const GlaConfig>(std::move(config)));
  return family;
}

}  // namespace fulmen
