// The pipeline schedules by name, and their lists of instructions.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "parallel/pipeline_instructions.h"

namespace fulmen {

enum class ScheduleKind : std::uint8_t { gpipe, one_forward_one_backward, interleaved, zero_bubble };
// "gpipe", "1f1b", "interleaved", "zero-bubble", as configurations spell them.
std::string_view name_of(ScheduleKind kind);
ScheduleKind parse_schedule_kind(std::string_view name);

// One list per pipeline rank, of one optimisation step: all micro-batches, then reduce_shared, reduce_gradients and
// optimizer_step. Works for any number of ranks and micro-batches >= 1. With `chunks` model chunks per rank, chunk c of
// rank r is stage c * ranks + r. Throws UserError where the kind, or a single rank, takes no chunks.
//   gpipe: all forwards, then all backwards.
//   1f1b: rank r of p warms up with min(p - 1 - r, m) forwards, then alternates (PipeDream-Flush, arXiv 2006.09503).
//   interleaved: 1f1b over chunks, which shortens the bubble by as many times (arXiv 2104.04473). Any m: p need not
//     divide it.
//   zero-bubble: as 1f1b (interleaved, with chunks), but weight gradients wait for idle time (ZB-H1, arXiv 2401.10241).
//     No rank may keep more stashes for that than rank 0 needs.
// The last two are made for passes of these costs; with them zero-bubble never takes longer than 1f1b, or interleaved
// of as many chunks. All ranks must make the lists of the same costs.
std::vector<InstructionList> make_schedule(ScheduleKind kind, int ranks, int micro_batches, int chunks = 1,
                                           const ScheduleCosts& costs = {});

}  // namespace fulmen
