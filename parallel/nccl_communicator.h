// A communicator for GPU tensors over NCCL, with an MPI communicator for all that lies on the host.
#pragma once

#include <cstddef>
#include <memory>

#include "parallel/communicator.h"

namespace fulmen {

// Operations on CPU tensors, and so those on host values, are `host`'s, as is barrier(). Operations on tensors of
// `device` name a stream of it. A plain call runs on that stream. A start_ call runs on streams of the communicator's
// own, after all that is in the caller's by then. Pending::wait makes the stream that it is given wait, or, for a CPU
// stream, the caller. They are NCCL's, but between GPUs of one host exchanges and, where connect() was told of them,
// large started collectives use the copy engines (parallel/peer_copies.h). A rank's transfers to itself are copies on
// the device.
//
// The tensors of one call lie all on the CPU or all on `device`. Reductions know all dtypes but uint16; sums of bf16
// and fp16 round after each addition, by copies once. Receiving another length than is sent is not noticed. Every rank
// has a GPU of its own.
//
// Its construction, and a subgroup's, is collective. NCCL itself connects the ranks at the first operation on device
// tensors. It then waits for all ranks of the group, even if the operation is an exchange between some of them. abort()
// first ends what waits on the GPU for other ranks. Throws UserError when `device` cannot be used or the build has no
// NCCL. Later it throws InternalError with NCCL's words when an operation fails.
//
// Started collectives use the copy engines from least_bytes_to_copy on, of each rank's part: below the usual value,
// starting copies takes longer than NCCL's kernel.
inline constexpr std::size_t usual_least_bytes_to_copy = std::size_t{1} << 20;
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host, Device device,
                                                     std::size_t least_bytes_to_copy = usual_least_bytes_to_copy);

}  // namespace fulmen
