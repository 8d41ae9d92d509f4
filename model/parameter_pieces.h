// Runs of a local matrix as hyperslabs of the logical tensors that it is made of.
#pragma once

#include <string>
#include <vector>

#include "framework/execution.h"
#include "model/parameter.h"

namespace fulmen {

// A piece of a logical tensor in flat memory.
struct ParameterPiece {
  std::string tensor;
  Shape global_shape;
  std::vector<std::int64_t> offset;  // of the piece in the logical tensor
  Tensor memory;                     // of the logical tensor's rank; may be strided
  bool owned = false;                // this rank writes it to checkpoints; other ranks' copies are equal
};

// The row-major place in its logical tensor of element `local` (row-major, too) of a piece.
std::int64_t global_index(const ParameterPiece& piece, std::int64_t local);

// The pieces of the elements `range` of a local matrix (row-major), which lie in `memory` [range.size()]. A piece is
// owned where this rank's copy of the segment is the first. A range that begins or ends within a row makes up to three
// pieces of each segment. In a stack the first and the last item have up to three pieces each, and the whole items
// between them are a single piece. Padding belongs to none.
std::vector<ParameterPiece> pieces_of(const ParameterDeclaration& declaration, const LocalLayout& layout,
                                      IndexRange range, const Tensor& memory);

// Fills a piece from its tensor's initialiser: drawn in fp64 and rounded to what holds it; bf16 by way of fp32.
void initialize_piece(const Execution& execution, const ParameterDeclaration& declaration, std::uint64_t seed,
                      const ParameterPiece& piece);

}  // namespace fulmen
