// Copies between host memory and pieces of parameters, wherever those lie.
#pragma once

#include "framework/execution.h"

namespace fulmen {

// `host` holds piece.bytes() bytes, row-major. The piece may be strided between its rows (dimension 0), not within
// them. To the host the copy is complete when the call returns; from it, `host` may be reused then. In stream order.
void copy_piece_to_host(const Execution& execution, const Tensor& piece, void* host);
void copy_piece_from_host(const Execution& execution, const void* host, const Tensor& piece);

}  // namespace fulmen
