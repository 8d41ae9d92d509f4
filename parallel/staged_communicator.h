// A communicator for GPU tensors over a communicator of host memory: through page-locked buffers. It is the way of
// ranks that share a GPU, and of those without NCCL.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace fulmen {

// Operations on CPU tensors are `host`'s. Those on tensors of `device` name a stream of it. They wait for the stream,
// copy to host memory, run there and copy back in stream order. A start_ call does all of this at once, except for the
// end of the last copy. So it waits for the other ranks as a plain call does. bf16 is reduced in fp32 and rounded once;
// fp16 is not reduced. The tensors of one call lie all on the CPU or all on `device`. The host memory grows to the size
// of the largest operation, and is shared with subgroups. Throws InternalError for tensors or streams of another
// device, UserError at the first use of a `device` that is not there.
std::unique_ptr<Communicator> make_staged_communicator(std::unique_ptr<Communicator> host, Device device);

}  // namespace fulmen
