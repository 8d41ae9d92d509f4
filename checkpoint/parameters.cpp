// Between flat buffers and logical tensors.
#include "checkpoint/parameters.h"

namespace fulmen {

std::vector<TensorPiece> pieces_to_save(const ParameterStore& parameters, const std::vector<Tensor>& flat,
                                        const std::string& prefix) {
  std::vector<TensorPiece> list;
  for (const ParameterPiece& piece : parameters.pieces(flat))
    if (piece.owned) list.push_back({prefix + piece.tensor, piece.global_shape, piece.offset, piece.memory});
  return list;
}

void load_pieces(const CheckpointReader& checkpoint, const ParameterStore& parameters, const std::vector<Tensor>& flat,
                 const std::string& prefix) {
  for (const ParameterPiece& piece : parameters.pieces(flat))
    checkpoint.read({prefix + piece.tensor, piece.global_shape, piece.offset, piece.memory});
}

void require_same_model(const CheckpointReader& checkpoint, const ModelConfig& config) {
  const std::map<std::string, std::string>& saved = checkpoint.description().model;
  for (const auto& [key, value] : ModelConfig::from_identity(saved, checkpoint.folder().string()).identity()) {
    const auto identity = config.identity();
    const auto wanted = identity.find(key);
    if (wanted != identity.end() && wanted->second == value) continue;
    throw UserError(checkpoint.folder().string(),
                    fmt::format("holds another model: its {} is {}, the configuration's is {}", key, value,
                                wanted == identity.end() ? "not set" : wanted->second),
                    "give the configuration that made the checkpoint, or another run.directory");
  }
}

}  // namespace fulmen
