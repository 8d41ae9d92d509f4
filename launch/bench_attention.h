// Linear attention by itself, over shapes: the problem that training has, and the table of `bench kernels --attention`.
#pragma once

#include <string>
#include <vector>

#include "kernels/linear_attention.h"
#include "launch/bench_measure.h"

namespace fulmen {

struct AttentionShape {
  std::int64_t batch, heads, length, width;  // width: of a head of q and k
  std::int64_t value_width = width;          // of a head of v
};

// q, k and v are slices of a projection of each token to q, k, v and as much as v again, as training has them, and so
// are their gradients.
struct AttentionProblem {
  LinearAttentionInputs inputs;
  LinearAttentionOutputs outputs;
  LinearAttentionGradients gradients;
};
AttentionProblem make_attention(BenchTensors& tensors, const AttentionShape& shape, DType dtype);
// The forward pass keeps the states between pieces of rows for the backward pass, as in training.
void keep_piece_states(BenchTensors& tensors, const Execution& execution, AttentionProblem& problem);

// A row for each shape, pass and activation of q and k (none, silu, silu with LRPE), and rows for the decoding step.
// Passes are forward, backward, and the states that a slice of a sequence passes on. The floor is the traffic alone at
// `copy_bytes_per_second`. Forward reads q, k and v and writes the output. Backward reads q, k, v and the output's
// gradient and writes three gradients. States read k and v. A step also reads and writes the state. Only rows whose
// name contains `filter`.
std::vector<BenchRow> measure_attention(const Execution& execution, DType dtype, double copy_bytes_per_second,
                                        double seconds_each, const std::string& filter);

}  // namespace fulmen
