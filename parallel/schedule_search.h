// Finds a pipeline schedule that is short for stages of given costs.
#pragma once

#include <vector>

#include "parallel/list_schedule.h"

namespace fulmen {

// The shortest simulated step (check_schedule with these costs) among `known` and the list schedules of several rules.
// The rules are tried for all ranks at once and then rank by rank. Among equally short lists the list wins in which
// more weight gradients run joined with their backward_input. Every rank finds the same: nothing is measured.
std::vector<InstructionList> find_list_schedule(bool weights_wait, const PipelineShape& shape,
                                                const ScheduleCosts& costs,
                                                std::vector<std::vector<InstructionList>> known);

}  // namespace fulmen
