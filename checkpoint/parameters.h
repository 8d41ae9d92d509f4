// Between the flat buffers of a parameter store and the logical tensors of a checkpoint.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "model/model_config.h"
#include "model/parameter_store.h"

namespace fulmen {

// The pieces of `flat` (one tensor per parameter group, as ParameterStore::pieces takes them) that this rank writes, named
// prefix + tensor: "parameters/", "optimizer/exp_avg/", ...
std::vector<TensorPiece> pieces_to_save(const ParameterStore& parameters, const std::vector<Tensor>& flat,
                                        const std::string& prefix);

// Reads every piece that this rank holds. Throws UserError naming the tensor that is missing or of another shape.
void load_pieces(const CheckpointReader& checkpoint, const ParameterStore& parameters, const std::vector<Tensor>& flat,
                 const std::string& prefix);

// Throws UserError naming the first of family, variant, layers, hidden, heads, glu, vocabulary and LRPE layers that differs.
void require_same_model(const CheckpointReader& checkpoint, const ModelConfig& config);

}  // namespace fulmen
