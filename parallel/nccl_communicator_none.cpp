// A build without CUDA: there is no NCCL, and the message says what to do.
#include "framework/error.h"
#include "parallel/nccl_communicator.h"

namespace fulmen {

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator>, Device, std::size_t) {
  throw UserError("parallel.transport: nccl", "this build has no CUDA support, and so no NCCL",
                  "set run.device to cpu, or build with cmake --preset cuda");
}

}  // namespace fulmen
