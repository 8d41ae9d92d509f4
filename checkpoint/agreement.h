// Helps ranks act together on a shared file system: the same outcome on all of them, and short texts gathered on
// rank 0.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "parallel/communicator.h"

namespace fulmen {

// Runs `work`, which communicates nothing, on every rank. When it throws on any, all ranks throw the error of the
// lowest failing rank, so that none is left waiting. Collective.
void run_agreed(Communicator& communicator, const std::function<void()>& work);

// The texts of all ranks in rank order on rank 0; nothing on the others. Collective.
std::vector<std::string> gather_texts(const std::string& text, Communicator& communicator);

}  // namespace fulmen
