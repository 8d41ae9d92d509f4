// Checks a pipeline schedule before anything runs, and times it.
#pragma once

#include <vector>

#include "parallel/pipeline_instructions.h"

namespace fulmen {

struct ScheduleReport {
  std::vector<int> peak_stash;  // per pipeline rank: stashes (micro-batch, chunk) alive at once, at most
  std::vector<std::vector<int>>
      peak_slots;         // per rank and chunk: micro-batches between forward and backward_weight, at most
  double makespan = 0.0;  // simulated time of the whole step
  double bubble = 0.0;    // idle share of the ranks' total time
};

// Simulates all ranks together under rendezvous semantics: a send completes only when its receive is reached, and both
// sides of a group proceed together. Throws InternalError naming the ranks and instructions when something is wrong.
// That is a deadlock, a transfer without its counterpart or with another micro-batch, or a forward or backward missing,
// repeated or out of order. Also a step before the gradients are complete, and a stash never freed.
ScheduleReport check_schedule(const std::vector<InstructionList>& lists, int micro_batches, int chunks = 1,
                              const ScheduleCosts& costs = {});

}  // namespace fulmen
