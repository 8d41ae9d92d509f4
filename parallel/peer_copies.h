// Transfers between GPUs of one host by their copy engines, over NVLink or PCIe, and sums of the arriving data. Each
// GPU writes into memory of the other's process (CUDA IPC). Unlike NCCL's kernels, copies take no multiprocessor from
// concurrent arithmetic, while they move bytes or wait for the other side. A matrix product that fills the GPU would
// keep NCCL's kernel out until its end. A product that finds it waiting would run in two waves. A sum takes some
// microseconds of them for each piece, when that has arrived.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "framework/device.h"
#include "parallel/communicator.h"

namespace fulmen {

class PeerCopies {
 public:
  // Collective: no memory goes while another rank may still write to it.
  virtual ~PeerCopies() = default;
  // The other ranks may never come: the destructor gives nothing back and does not wait. The process is about to
  // end.
  virtual void abandon() = 0;

  // As Communicator::start_exchange, in the order of calls for every pair of ranks and direction. A send may be
  // complete before its receive is there. Transfers are entered into the profiler, which may be null, as `name` while
  // bytes move.
  [[nodiscard]] virtual Pending start_exchange(std::span<const Transfer> transfers, Stream stream, Profiler* profiler,
                                               const char* name) = 0;

  // As Communicator's of these names, of sums, fp64, fp32 or bf16: added in the order of the ranks, bf16 in fp32. In
  // one order with the exchanges for every pair of ranks. Arriving parts are added where they lie, by a short kernel
  // for each piece.
  [[nodiscard]] virtual Pending start_reduce_scatter(const Tensor& input, const Tensor& output, Stream stream,
                                                     Profiler* profiler, const char* name) = 0;
  [[nodiscard]] virtual Pending start_all_reduce(const Tensor& tensor, Stream stream, Profiler* profiler,
                                                 const char* name) = 0;
};

// Collective over `host`, which outlives it and whose ranks have a GPU each (or share one). Null on all ranks, with the
// reason in the log of the first, where a GPU cannot reach another's memory. Data is moved in pieces of
// piece_bytes, a multiple of 256 and the same on all ranks.
inline constexpr std::size_t usual_piece_bytes = std::size_t{16} << 20;
std::unique_ptr<PeerCopies> open_peer_copies(Communicator& host, Device device,
                                             std::size_t piece_bytes = usual_piece_bytes);

}  // namespace fulmen
