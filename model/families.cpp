// What the layers of each model family are made of.
#include "model/families.h"

#include <algorithm>
#include <iterator>

#include "model/gated_linear_attention.h"
#include "model/gated_linear_unit_mixer.h"

namespace fulmen {

std::vector<ParameterDeclaration> declare_layers(const ModelConfig& config, std::int64_t first, std::int64_t end) {
  std::vector<ParameterDeclaration> list;
  for (std::int64_t layer = first; layer < end; ++layer) {
    const auto before = static_cast<std::ptrdiff_t>(list.size());
    std::ranges::move(GatedLinearAttention::declare(config, layer), std::back_inserter(list));
    std::ranges::move(GatedLinearUnitMixer::declare(config, layer), std::back_inserter(list));
    for (auto added = list.begin() + before; added != list.end(); ++added) added->layer = layer;
  }
  return list;
}

std::vector<std::unique_ptr<Sublayer>> make_layer(const ModelConfig& config, std::int64_t layer,
                                                  const ModelContext& context) {
  std::vector<std::unique_ptr<Sublayer>> sublayers;
  sublayers.push_back(std::make_unique<GatedLinearAttention>(config, layer, context));
  sublayers.push_back(std::make_unique<GatedLinearUnitMixer>(config, layer, context));
  return sublayers;
}

}  // namespace fulmen
