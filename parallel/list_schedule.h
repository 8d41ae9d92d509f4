// Pipeline schedules made by list scheduling: in each tick every rank takes the most urgent pass that is ready.
#pragma once

#include <vector>

#include "parallel/pipeline_schedule.h"

namespace fulmen {

// What a rank may have in hand, for pipelines of any number of ranks, micro-batches and model chunks.
struct ListScheduleRules {
  bool weights_wait = false;   // backward_weight comes when nothing else is ready; otherwise right after backward_input
};

// All passes are taken to last one tick, and a rank does, in this order of urgency: a forward pass, in groups of as many
// micro-batches as there are ranks, chunk after chunk, as long as no more than its share are in flight; a backward pass; a
// weight gradient. What is made in a tick is transferred at its end. The lists of all ranks are parts of this one order of
// events, so that they cannot wait for each other in a circle.
std::vector<InstructionList> make_list_schedule(const ListScheduleRules& rules, int ranks, int micro_batches, int chunks);

}  // namespace fulmen
