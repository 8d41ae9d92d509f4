// Which piece of which logical tensor lies where among a checkpoint's files, and whether the pieces make whole tensors.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "framework/dtype.h"
#include "framework/tensor.h"

namespace fulmen {

struct StoredPiece {
  std::string name;  // of the tensor: "parameters/NAME"
  DType dtype = DType::fp32;
  Shape global_shape;
  std::vector<std::int64_t> offset;
  Shape shape;
  std::string file;     // relative to the checkpoint
  std::string dataset;  // in the file: "/parameters/NAME", "/parameters/NAME@1", ...
};

using PieceMap = std::map<std::string, std::vector<StoredPiece>>;  // by tensor

// The dataset of the `ordinal`-th piece of a tensor in one file.
std::string piece_dataset(const std::string& name, std::int64_t ordinal);

// One line per piece, and back.
std::string to_text(const std::vector<StoredPiece>& pieces);
std::vector<StoredPiece> parse_pieces(const std::string& text);

// "" when the pieces, all of one tensor, cover each of its cells exactly once; else what is wrong. Holds that volumes
// sum to the whole and that no two pieces overlap, which a sweep along one dimension finds.
std::string coverage_problem(const std::vector<StoredPiece>& pieces);

}  // namespace fulmen
