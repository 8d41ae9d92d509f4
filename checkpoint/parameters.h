// Between the flat buffers of a parameter store, on any device, and the logical tensors of a checkpoint.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "framework/execution.h"
#include "model/model_config.h"
#include "model/parameter_store.h"

namespace fulmen {

// The pieces of `flat` (one tensor per parameter group, as ParameterStore::pieces takes them) that this rank writes,
// named prefix + tensor: "parameters/", "optimizer/exp_avg/", ... They refer to `flat`; pieces on a GPU pass through
// the host one at a time while they are saved.
std::vector<TensorPiece> pieces_to_save(const ParameterStore& parameters, const std::vector<Tensor>& flat,
                                        const std::string& prefix, const Execution& execution);

// Reads every piece that this rank holds, into fp64, fp32 or (rounded from fp32) bf16. Throws UserError naming the
// tensor that is missing or of another shape.
void load_pieces(const CheckpointReader& checkpoint, const ParameterStore& parameters, const std::vector<Tensor>& flat,
                 const std::string& prefix, const Execution& execution);

// Throws UserError naming the first key of the models' identities that differs.
void require_same_model(const CheckpointReader& checkpoint, const ModelConfig& config);

}  // namespace fulmen
