// Hyperslabs of logical tensors, and their initial values.
#include "model/parameter_pieces.h"

#include <algorithm>
#include <type_traits>

#include "model/piece_transfer.h"

namespace fulmen {

namespace {

// A rectangle of a matrix.
struct Block {
  IndexRange rows, columns;
};

IndexRange common(IndexRange a, IndexRange b) {
  const std::int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

// A run of a row-major matrix: the end of a row, whole rows, the beginning of a row.
std::vector<Block> blocks_of(IndexRange range, std::int64_t columns) {
  std::vector<Block> blocks;
  if (range.size() == 0) return blocks;
  const std::int64_t first = range.begin / columns, from = range.begin % columns;
  const std::int64_t last = range.end / columns, to = range.end % columns;
  if (first == last) return {{{first, first + 1}, {from, to}}};
  if (from > 0) blocks.push_back({{first, first + 1}, {from, columns}});
  const std::int64_t whole = from > 0 ? first + 1 : first;
  if (whole < last) blocks.push_back({{whole, last}, {0, columns}});
  if (to > 0) blocks.push_back({{last, last + 1}, {0, to}});
  return blocks;
}

// Elements of the matrix in `memory`, which begins with element `first`. A block is one row or has whole rows around
// it.
Tensor view_of(const Block& block, std::int64_t columns, std::int64_t first, const Tensor& memory) {
  const auto [rows, range] = block;
  if (rows.size() == 1) {
    const std::int64_t begin = rows.begin * columns + range.begin - first;
    return memory.slice(0, begin, begin + range.size()).reshape({1, range.size()});
  }
  return memory.slice(0, rows.begin * columns - first, rows.end * columns - first)
      .reshape({rows.size(), columns})
      .slice(1, range.begin, range.end);
}

template <class T>
T rounded(double value) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return to_bfloat16(static_cast<float>(value));
  else
    return static_cast<T>(value);
}

// Some rows at a time: the host copy stays small.
template <class T>
void initialize(const Execution& execution, const LogicalTensor& tensor, std::uint64_t seed,
                const ParameterPiece& piece) {
  if (!piece.memory.is_contiguous() && piece.memory.rank() > 2) {
    for (std::int64_t i = 0; i < piece.memory.size(0); ++i) {
      ParameterPiece item = piece;
      item.offset[0] += i;
      item.memory = piece.memory.slice(0, i, i + 1);
      initialize<T>(execution, tensor, seed, item);
    }
    return;
  }
  constexpr std::int64_t window_elements = std::int64_t{1} << 20;
  const std::int64_t columns = piece.memory.size(-1), rows = piece.memory.elements() / columns;
  const Tensor matrix = piece.memory.is_contiguous() ? piece.memory.reshape({rows, columns}) : piece.memory;
  const std::int64_t step = std::max<std::int64_t>(1, window_elements / columns);
  const RandomStream random(seed, tensor.name);
  std::vector<T> values;
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t end = std::min(begin + step, rows);
    values.resize(static_cast<std::size_t>((end - begin) * columns));
#pragma omp parallel for schedule(static) if (values.size() > 4096)
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t first = global_index(piece, r * columns);
      for (std::int64_t c = 0; c < columns; ++c)
        values[static_cast<std::size_t>((r - begin) * columns + c)] = rounded<T>(tensor.initializer(random, first + c));
    }
    copy_piece_from_host(execution, values.data(), matrix.slice(0, begin, end));
  }
}

// The pieces of a run of a matrix, or of one item of a stack as if it were a matrix.
std::vector<ParameterPiece> matrix_pieces(const ParameterDeclaration& declaration, const LocalLayout& layout,
                                          IndexRange range, const Tensor& memory) {
  std::vector<ParameterPiece> pieces;
  const bool by_rows = declaration.dimension == 0;
  const std::vector<Block> blocks = blocks_of(range, std::max<std::int64_t>(layout.columns, 1));
  for (const LocalSegment& local : layout.segments) {
    const Segment& segment = declaration.segments[local.segment];
    Shape global = declaration.tensor(segment.tensor).shape;
    if (declaration.items > 0) global.erase(global.begin());
    FULMEN_CHECK(by_rows || global.size() == 2, "{} is split by columns but is no matrix", segment.tensor);
    const IndexRange extent{local.local_begin, local.local_begin + local.indices.size()};
    for (const Block& block : blocks) {
      const Block met{by_rows ? common(block.rows, extent) : block.rows,
                      by_rows ? block.columns : common(block.columns, extent)};
      if (met.rows.size() == 0 || met.columns.size() == 0) continue;
      const std::int64_t shift =
          segment.tensor_offset + local.indices.begin - local.local_begin;  // from local to global
      ParameterPiece piece;
      piece.tensor = segment.tensor;
      piece.owned = local.first_copy;
      piece.global_shape = global;
      piece.offset.assign(global.size(), 0);
      piece.offset[0] = met.rows.begin + (by_rows ? shift : 0);
      Shape shape = global;
      shape[0] = met.rows.size();
      const std::int64_t columns = by_rows ? layout.columns : elements_of(global) / global[0];
      if (met.columns.size() != columns) {  // a part of the rows
        FULMEN_CHECK(global.size() > 1 && global.back() == columns, "{} of shape {} is cut within a row",
                     segment.tensor, to_string(global));
        piece.offset.back() = met.columns.begin + (by_rows ? 0 : shift);
        shape.back() = met.columns.size();
      }
      piece.memory = view_of(met, layout.columns, range.begin, memory);
      if (piece.memory.is_contiguous()) piece.memory = piece.memory.reshape(shape);
      pieces.push_back(std::move(piece));
    }
  }
  return pieces;
}

// A run within one item of a stack.
void append_item_pieces(std::vector<ParameterPiece>& pieces, const ParameterDeclaration& declaration,
                        const LocalLayout& layout, std::int64_t item, IndexRange range, const Tensor& memory) {
  for (ParameterPiece& piece : matrix_pieces(declaration, layout, range, memory)) {
    piece.global_shape = declaration.tensor(piece.tensor).shape;
    piece.offset.insert(piece.offset.begin(), item);
    piece.memory = piece.memory.split_dimension(0, piece.memory.size(0));
    pieces.push_back(std::move(piece));
  }
}

// Whole items of a stack, one piece for each segment; `memory` [items, rows, columns].
void append_whole_items(std::vector<ParameterPiece>& pieces, const ParameterDeclaration& declaration,
                        const LocalLayout& layout, std::int64_t first_item, const Tensor& memory) {
  for (const LocalSegment& local : layout.segments) {
    if (local.indices.size() == 0) continue;
    const Segment& segment = declaration.segments[local.segment];
    const int dimension = 1 + declaration.dimension;
    ParameterPiece piece;
    piece.tensor = segment.tensor;
    piece.owned = local.first_copy;
    piece.global_shape = declaration.tensor(segment.tensor).shape;
    piece.offset = {first_item, 0, 0};
    piece.offset[static_cast<std::size_t>(dimension)] = segment.tensor_offset + local.indices.begin;
    piece.memory = memory.slice(dimension, local.local_begin, local.local_begin + local.indices.size());
    pieces.push_back(std::move(piece));
  }
}

}  // namespace

std::int64_t global_index(const ParameterPiece& piece, std::int64_t local) {
  std::int64_t index = 0, stride = 1;
  for (std::size_t d = piece.global_shape.size(); d-- > 0; local /= piece.memory.size(static_cast<int>(d))) {
    index += (piece.offset[d] + local % piece.memory.size(static_cast<int>(d))) * stride;
    stride *= piece.global_shape[d];
  }
  return index;
}

std::vector<ParameterPiece> pieces_of(const ParameterDeclaration& declaration, const LocalLayout& layout,
                                      IndexRange range, const Tensor& memory) {
  if (declaration.items == 0) return matrix_pieces(declaration, layout, range, memory);
  std::vector<ParameterPiece> pieces;
  const std::int64_t item = layout.item_rows() * layout.columns;
  if (item == 0) return pieces;
  for (std::int64_t at = range.begin; at < range.end;) {
    const std::int64_t index = at / item, in_item = at % item, whole = (range.end - at) / item;
    const std::int64_t global = layout.items.begin + index;
    std::int64_t end = std::min(range.end, (index + 1) * item);
    if (in_item == 0 && whole > 0) end = at + whole * item;
    const Tensor run = memory.slice(0, at - range.begin, end - range.begin);
    if (in_item == 0 && whole > 0)
      append_whole_items(pieces, declaration, layout, global, run.reshape({whole, layout.item_rows(), layout.columns}));
    else
      append_item_pieces(pieces, declaration, layout, global, {in_item, in_item + run.elements()}, run);
    at = end;
  }
  return pieces;
}

void initialize_piece(const Execution& execution, const ParameterDeclaration& declaration, std::uint64_t seed,
                      const ParameterPiece& piece) {
  const LogicalTensor& tensor = declaration.tensor(piece.tensor);
  if (piece.memory.dtype() == DType::bf16) return initialize<BFloat16>(execution, tensor, seed, piece);
  dispatch_fp32_fp64(piece.memory.dtype(), [&]<class T>(T) { initialize<T>(execution, tensor, seed, piece); });
}

}  // namespace fulmen
