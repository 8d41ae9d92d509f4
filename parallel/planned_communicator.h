// A communicator for planning (framework/memory.h): one rank of a group whose others do not exist.
#pragma once

#include "parallel/communicator.h"

namespace fulmen {

// Rank `rank` of `size`. Operations touch no tensor, and values keep what this rank gave.
std::unique_ptr<Communicator> make_planned_communicator(int rank, int size);

}  // namespace fulmen
