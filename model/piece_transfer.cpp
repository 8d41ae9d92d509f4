// Copies between host memory and pieces of parameters.
#include "model/piece_transfer.h"

#include <cstring>

#include "framework/gpu.h"

namespace fulmen {

namespace {

// A piece as `rows` runs of bytes.
struct Rows {
  std::size_t count, bytes, pitch;
};

Rows rows_of(const Tensor& piece) {
  if (piece.is_contiguous()) return {1, piece.bytes(), piece.bytes()};
  const auto count = static_cast<std::size_t>(piece.size(0));
  FULMEN_CHECK(piece.select(0, 0).is_contiguous(), "the rows of {} are not contiguous", piece.describe());
  return {count, piece.bytes() / count, static_cast<std::size_t>(piece.stride(0)) * size_of(piece.dtype())};
}

void copy_rows(const Execution& execution, void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch,
               const Rows& rows) {
  if (execution.device.kind == DeviceKind::cuda) {
    if (rows.count == 1)  // of any size; a pitch has a limit
      gpu::copy(execution.stream, to, from, rows.bytes);
    else
      gpu::copy_rows(execution.stream, to, to_pitch, from, from_pitch, rows.bytes, rows.count);
    return;
  }
  for (std::size_t row = 0; row < rows.count; ++row)
    std::memcpy(static_cast<std::byte*>(to) + row * to_pitch, static_cast<const std::byte*>(from) + row * from_pitch,
                rows.bytes);
}

}  // namespace

void copy_piece_to_host(const Execution& execution, const Tensor& piece, void* host) {
  if (piece.elements() == 0) return;
  const Rows rows = rows_of(piece);
  copy_rows(execution, host, rows.bytes, piece.data(), rows.pitch, rows);
  if (execution.device.kind == DeviceKind::cuda) gpu::synchronize(execution.stream);
}

void copy_piece_from_host(const Execution& execution, const void* host, const Tensor& piece) {
  if (piece.elements() == 0) return;
  const Rows rows = rows_of(piece);
  copy_rows(execution, piece.data(), rows.pitch, host, rows.bytes, rows);
  // A copy of rows from pageable memory may still be reading it.
  if (execution.device.kind == DeviceKind::cuda) gpu::synchronize(execution.stream);
}

}  // namespace fulmen
