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
  constexpr std::int64_t window_elements = std::int64_t{1} << 20;
  const std::int64_t rows = piece.memory.size(0), columns = piece.memory.elements() / rows;
  const std::int64_t global_columns = elements_of(tensor.shape) / tensor.shape[0];
  const std::int64_t first_column = tensor.shape.size() > 1 ? piece.offset.back() : 0;
  const std::int64_t step = std::max<std::int64_t>(1, window_elements / columns);
  const RandomStream random(seed, tensor.name);
  std::vector<T> values;
  for (std::int64_t begin = 0; begin < rows; begin += step) {
    const std::int64_t end = std::min(begin + step, rows);
    values.resize(static_cast<std::size_t>((end - begin) * columns));
#pragma omp parallel for schedule(static) if (values.size() > 4096)
    for (std::int64_t r = begin; r < end; ++r)
      for (std::int64_t c = 0; c < columns; ++c)
        values[static_cast<std::size_t>((r - begin) * columns + c)] =
            rounded<T>(tensor.initializer(random, (piece.offset[0] + r) * global_columns + first_column + c));
    copy_piece_from_host(execution, values.data(), piece.memory.slice(0, begin, end));
  }
}

}  // namespace

std::vector<ParameterPiece> pieces_of(const ParameterDeclaration& declaration, const LocalLayout& layout,
                                      IndexRange range, const Tensor& memory) {
  std::vector<ParameterPiece> pieces;
  const bool by_rows = declaration.dimension == 0;
  const std::vector<Block> blocks = blocks_of(range, std::max<std::int64_t>(layout.columns, 1));
  for (const LocalSegment& local : layout.segments) {
    const Segment& segment = declaration.segments[local.segment];
    const Shape& global = declaration.tensor(segment.tensor).shape;
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

void initialize_piece(const Execution& execution, const ParameterDeclaration& declaration, std::uint64_t seed,
                      const ParameterPiece& piece) {
  const LogicalTensor& tensor = declaration.tensor(piece.tensor);
  if (piece.memory.dtype() == DType::bf16) return initialize<BFloat16>(execution, tensor, seed, piece);
  dispatch_fp32_fp64(piece.memory.dtype(), [&]<class T>(T) { initialize<T>(execution, tensor, seed, piece); });
}

}  // namespace fulmen
