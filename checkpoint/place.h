// Whether checkpoints will find their place: asked before the first step, not at the first save.
#pragma once

#include <cstdint>
#include <filesystem>

#include "parallel/communicator.h"

namespace fulmen {

struct CheckpointDemand {
  double bytes = 0.0;      // of one checkpoint
  std::int64_t saves = 1;  // that are still to come
  std::int64_t keep = 0;   // newest checkpoints that stay; 0: all
};

// The problem with `free_bytes` for these and the `existing` valid checkpoints, or "". A checkpoint is written before
// the oldest is deleted.
std::string room_problem(const CheckpointDemand& demand, std::int64_t existing, double free_bytes);

// Throws UserError on all ranks when `root` cannot be made or written, or its disk has no room. Also when not all ranks
// see the same folder there, or a rank may write no file as large as its own (ulimit -f). With keep = 0 a single
// checkpoint must fit; if not all do, that is warned of. Collective.
void require_place_for_checkpoints(const std::filesystem::path& root, const CheckpointDemand& demand,
                                   Communicator& communicator);

}  // namespace fulmen
