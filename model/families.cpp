// Quantities that follow from the layers of a model.
#include "model/families.h"

#include <algorithm>

namespace fulmen {

bool has_layer_losses(const ModelConfig& config) {
  for (std::int64_t layer = 0; layer < config.layers; ++layer)
    for (const Branch& branch : config.layer(layer))
      if (std::ranges::any_of(branch.nodes, [](const Node& node) { return node.kind == Node::Kind::loss; }))
        return true;
  return false;
}

std::vector<ParameterDeclaration> declare_layers(const ModelConfig& config, std::int64_t first, std::int64_t end) {
  std::vector<ParameterDeclaration> list;
  for (std::int64_t layer = first; layer < end; ++layer)
    for (const Branch& branch : config.layer(layer))
      for (ParameterDeclaration& declaration : branch.declarations()) {
        declaration.layer = layer;
        list.push_back(std::move(declaration));
      }
  return list;
}

}  // namespace fulmen
