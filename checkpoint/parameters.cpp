// Between flat buffers and logical tensors.
#include "checkpoint/parameters.h"

#include <algorithm>

#include "framework/bfloat16.h"
#include "model/piece_transfer.h"

namespace fulmen {

std::vector<TensorPiece> pieces_to_save(const ParameterStore& parameters, const std::vector<Tensor>& flat,
                                        const std::string& prefix, const Execution& execution) {
  std::vector<TensorPiece> list;
  for (const ParameterPiece& piece : parameters.pieces(flat)) {
    if (!piece.owned) continue;
    FULMEN_CHECK(piece.memory.dtype() != DType::bf16, "{}: checkpoints hold what bf16 weights were rounded from",
                 piece.tensor);
    list.push_back({prefix + piece.tensor, piece.global_shape, piece.offset, piece.memory});
    if (execution.device.kind == DeviceKind::cpu) continue;
    list.back().to_host = [execution, memory = piece.memory](void* host) {
      copy_piece_to_host(execution, memory, host);
    };
  }
  return list;
}

void load_pieces(const CheckpointReader& checkpoint, const ParameterStore& parameters, const std::vector<Tensor>& flat,
                 const std::string& prefix, const Execution& execution) {
  std::vector<std::byte> staging;  // a piece as it is read, one at a time
  std::vector<BFloat16> narrow;
  for (const ParameterPiece& piece : parameters.pieces(flat)) {
    const Tensor& memory = piece.memory;
    const bool rounded = memory.dtype() == DType::bf16;
    if (execution.device.kind == DeviceKind::cpu && !rounded) {
      checkpoint.read({prefix + piece.tensor, piece.global_shape, piece.offset, memory});
      continue;
    }
    const DType read_as = rounded ? DType::fp32 : memory.dtype();
    const auto elements = static_cast<std::size_t>(memory.elements());
    staging.resize(std::max(staging.size(), elements * size_of(read_as)));
    const Tensor host(staging.data(), read_as, memory.shape());
    checkpoint.read({prefix + piece.tensor, piece.global_shape, piece.offset, host});
    if (!rounded) {
      copy_piece_from_host(execution, host.data(), memory);
      continue;
    }
    narrow.resize(std::max(narrow.size(), elements));
    std::transform(host.as<float>(), host.as<float>() + elements, narrow.begin(), to_bfloat16);
    copy_piece_from_host(execution, narrow.data(), memory);
  }
}

void require_same_model(const CheckpointReader& checkpoint, const ModelConfig& config) {
  const std::map<std::string, std::string>& saved = checkpoint.description().model;
  for (const auto& [key, value] : ModelConfig::from_identity(saved, checkpoint.folder().string())->identity()) {
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
