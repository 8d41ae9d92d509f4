// Pipeline schedules made by list scheduling: whenever a rank becomes free it takes the most urgent pass that is ready.
#pragma once

#include <vector>

#include "parallel/pipeline_instructions.h"

namespace fulmen {

struct PipelineShape {
  int ranks, micro_batches, chunks;
};

// The passes that a rank takes first, and the number that it may have in hand.
struct ListScheduleRules {
  bool weights_wait = false;  // backward_weight comes when nothing else is ready; otherwise right after backward_input
  bool joined = false;        // but right after it where nothing is sent between them: the two then run as one
  bool patient = false;       // a weight gradient does not start when another pass will be ready before it is over
  bool backward_first = false;  // a backward pass is more urgent than a forward pass; otherwise less
  bool far_ahead = false;       // forward passes in flight are bounded by the stashes alone, not by the rank's share
};

// The share of stashes that no rank ever exceeds: what the first rank has in flight. With one chunk as in 1F1B; with
// several as in the interleaved schedule of Megatron-LM (arXiv 2104.04473), for one more than its warm-up.
int most_stashes(const PipelineShape& shape);

// Passes last what their stage's costs say, transfers no time. Forward passes come in groups of as many micro-batches
// as there are ranks, chunk after chunk. The result of a pass is transferred at its end. The lists of all ranks are
// parts of a single order of events. So they cannot wait for each other in a circle, whatever passes really last.
// `rules` by rank.
std::vector<InstructionList> make_list_schedule(const std::vector<ListScheduleRules>& rules, const PipelineShape& shape,
                                                const std::vector<PassCosts>& stages);

}  // namespace fulmen
