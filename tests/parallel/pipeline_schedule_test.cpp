// Schedules over many shapes: accepted by the checker, with the stash and the bubble that theory gives.
#include "parallel/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "framework/error.h"
#include "parallel/schedule_checker.h"

namespace fulmen {
namespace {

constexpr ScheduleKind kinds[] = {ScheduleKind::gpipe, ScheduleKind::one_forward_one_backward};

std::string case_name(ScheduleKind kind, int stages, int micro_batches) {
  return fmt::format("{}, {} stages, {} micro-batches", name_of(kind), stages, micro_batches);
}

TEST(PipelineSchedule, EveryShapePassesTheCheckWithItsStash) {
  for (const ScheduleKind kind : kinds) {
    for (int stages = 1; stages <= 8; ++stages) {
      for (int micro_batches = 1; micro_batches <= 12; ++micro_batches) {
        SCOPED_TRACE(case_name(kind, stages, micro_batches));
        const auto lists = make_schedule(kind, stages, micro_batches);
        ASSERT_EQ(lists.size(), static_cast<std::size_t>(stages));
        const ScheduleReport report = check_schedule(lists, micro_batches);
        for (int r = 0; r < stages; ++r) {
          const int expected = kind == ScheduleKind::gpipe ? micro_batches : std::min(stages - r, micro_batches);
          EXPECT_EQ(report.peak_stash[static_cast<std::size_t>(r)], expected) << "rank " << r;
        }
      }
    }
  }
}

TEST(PipelineSchedule, LargePipelinesPass) {
  for (const ScheduleKind kind : kinds)
    for (const int micro_batches : {1, 43, 88, 300})
      EXPECT_NO_THROW(check_schedule(make_schedule(kind, 88, micro_batches), micro_batches));
}

// PipeDream-Flush (arXiv 2006.09503) and GPipe: of m + p - 1 slots each rank is idle in p - 1.
TEST(PipelineSchedule, BubbleOfAnUnsplitBackwardIsTheFormula) {
  for (const ScheduleKind kind : kinds) {
    for (int stages = 1; stages <= 8; ++stages) {
      const ScheduleCosts costs{.stages = std::vector<PassCosts>(static_cast<std::size_t>(stages), {1.0, 2.0, 0.0})};
      for (int micro_batches = 1; micro_batches <= 24; ++micro_batches) {
        const ScheduleReport report =
            check_schedule(make_schedule(kind, stages, micro_batches), micro_batches, 1, costs);
        const int slots = micro_batches + stages - 1;
        EXPECT_DOUBLE_EQ(report.makespan, 3.0 * slots) << case_name(kind, stages, micro_batches);
        EXPECT_NEAR(report.bubble, (stages - 1.0) / slots, 1e-12) << case_name(kind, stages, micro_batches);
      }
    }
  }
}

// The gradient leaves before backward_weight, so that half of the backward is not on the way down the pipeline.
TEST(PipelineSchedule, SplitBackwardShortensTheBubble) {
  for (const ScheduleKind kind : kinds) {
    for (int stages = 1; stages <= 8; ++stages) {
      for (int micro_batches = 1; micro_batches <= 24; ++micro_batches) {
        const ScheduleReport report = check_schedule(make_schedule(kind, stages, micro_batches), micro_batches);
        const double expected = 3.0 * micro_batches + 2.0 * (stages - 1);
        EXPECT_DOUBLE_EQ(report.makespan, expected) << case_name(kind, stages, micro_batches);
      }
    }
  }
}

TEST(PipelineSchedule, TransfersCostTime) {
  const auto lists = make_schedule(ScheduleKind::gpipe, 2, 1);
  const ScheduleCosts costs{.stages = {}, .transfer = 0.25};
  EXPECT_DOUBLE_EQ(check_schedule(lists, 1, 1, costs).makespan, 5.5);
}

std::vector<std::string> texts_of(const InstructionList& list) {
  std::vector<std::string> texts;
  for (const Instruction& instruction : list) texts.push_back(to_string(instruction));
  return texts;
}

TEST(PipelineSchedule, MiddleStageOf1f1b) {
  const auto lists = make_schedule(ScheduleKind::one_forward_one_backward, 3, 3);
  const std::vector<std::string> expected = {
      "receive_forward m0 c0 <- 0",
      "forward m0 c0",
      "send_forward m0 c0 -> 2",
      "receive_forward m1 c0 <- 0",
      "forward m1 c0",
      "send_forward m1 c0 -> 2 with next",
      "receive_backward m0 c0 <- 2",
      "backward_input m0 c0",
      "send_backward m0 c0 -> 0 with next",
      "receive_forward m2 c0 <- 0",
      "backward_weight m0 c0",
      "forward m2 c0",
      "send_forward m2 c0 -> 2 with next",
      "receive_backward m1 c0 <- 2",
      "backward_input m1 c0",
      "send_backward m1 c0 -> 0",
      "backward_weight m1 c0",
      "receive_backward m2 c0 <- 2",
      "backward_input m2 c0",
      "send_backward m2 c0 -> 0",
      "backward_weight m2 c0",
      "reduce_shared",
      "reduce_gradients c0",
      "optimizer_step",
  };
  EXPECT_EQ(texts_of(lists[1]), expected);
}

constexpr ScheduleKind all_kinds[] = {ScheduleKind::gpipe, ScheduleKind::one_forward_one_backward,
                                      ScheduleKind::interleaved, ScheduleKind::zero_bubble};

bool takes_chunks(ScheduleKind kind) { return kind == ScheduleKind::interleaved || kind == ScheduleKind::zero_bubble; }

TEST(PipelineSchedule, EveryKindStageMicroBatchAndChunkPassesTheChecker) {
  for (const ScheduleKind kind : all_kinds)
    for (int ranks = 1; ranks <= 8; ++ranks)
      for (int micro_batches = 1; micro_batches <= 16; ++micro_batches)
        for (int chunks = 1; chunks <= (ranks > 1 && takes_chunks(kind) ? 3 : 1); ++chunks) {
          SCOPED_TRACE(case_name(kind, ranks, micro_batches) + fmt::format(", {} chunks", chunks));
          const auto lists = make_schedule(kind, ranks, micro_batches, chunks);
          const ScheduleReport report = check_schedule(lists, micro_batches, chunks);
          const int limit = chunks == 1 ? ranks : 2 * (ranks - 1) + (chunks - 1) * ranks + 1;
          for (const int stash : report.peak_stash)
            EXPECT_LE(stash, kind == ScheduleKind::gpipe ? micro_batches : std::min(limit, micro_batches * chunks));
          // Under overlap nothing takes longer.
          const ScheduleReport overlapped =
              check_schedule(lists, micro_batches, chunks, {.stages = {}, .overlap = true});
          EXPECT_LE(overlapped.makespan, report.makespan);
        }
}

// With passes of one unit 1F1B takes 3 m + 2 (p - 1); weight gradients in idle time leave p - 1 units of bubble
// (ZB-H1).
TEST(PipelineSchedule, ZeroBubbleHalvesTheBubble) {
  for (int ranks = 2; ranks <= 8; ++ranks)
    for (int micro_batches = ranks; micro_batches <= 24; ++micro_batches) {
      SCOPED_TRACE(case_name(ScheduleKind::zero_bubble, ranks, micro_batches));
      const ScheduleReport report =
          check_schedule(make_schedule(ScheduleKind::zero_bubble, ranks, micro_batches), micro_batches);
      const ScheduleReport plain =
          check_schedule(make_schedule(ScheduleKind::one_forward_one_backward, ranks, micro_batches), micro_batches);
      EXPECT_LE(report.makespan, 3.0 * micro_batches + (ranks - 1));
      EXPECT_LT(report.bubble, plain.bubble);
      EXPECT_EQ(report.peak_stash.front(), plain.peak_stash.front());
    }
}

// The passes of a chunk take 1/v of the time, and so does the bubble. It is (p - 1) / v of a stage's passes, or close
// to it where ranks do not divide the micro-batches.
TEST(PipelineSchedule, InterleavingShortensTheBubble) {
  for (int ranks = 2; ranks <= 8; ++ranks)
    for (int groups = 1; groups <= 4; ++groups)
      for (int chunks = 2; chunks <= 3; ++chunks) {
        const int micro_batches = groups * ranks;
        SCOPED_TRACE(case_name(ScheduleKind::interleaved, ranks, micro_batches) + fmt::format(", {} chunks", chunks));
        const ScheduleReport report = check_schedule(
            make_schedule(ScheduleKind::interleaved, ranks, micro_batches, chunks), micro_batches, chunks);
        const ScheduleReport plain =
            check_schedule(make_schedule(ScheduleKind::one_forward_one_backward, ranks, micro_batches), micro_batches);
        EXPECT_LT(report.bubble, plain.bubble);
        EXPECT_LE(report.makespan, 3.0 * micro_batches * chunks + 2.0 * (ranks - 1) + 1.0);
      }
}

// A stage of twice the work is what all wait for.
TEST(PipelineSchedule, TheBubbleCountsUnequalStages) {
  const auto lists = make_schedule(ScheduleKind::one_forward_one_backward, 2, 100);
  const ScheduleReport report = check_schedule(lists, 100, 1, {.stages = {{1.0, 1.0, 1.0}, {2.0, 2.0, 2.0}}});
  EXPECT_NEAR(report.bubble, 0.25, 0.01);
}

TEST(PipelineSchedule, RefusesChunksWhereTheyHaveNoMeaning) {
  EXPECT_THROW(make_schedule(ScheduleKind::gpipe, 2, 1, 2), UserError);
  EXPECT_THROW(make_schedule(ScheduleKind::one_forward_one_backward, 2, 1, 2), UserError);
  EXPECT_THROW(make_schedule(ScheduleKind::interleaved, 1, 1, 2), UserError);
}

TEST(PipelineSchedule, NamesAreThoseOfTheConfiguration) {
  for (const ScheduleKind kind : all_kinds) EXPECT_EQ(parse_schedule_kind(name_of(kind)), kind);
}

TEST(PipelineSchedule, OneStageTransfersNothing) {
  for (const ScheduleKind kind : kinds) {
    const auto lists = make_schedule(kind, 1, 2);
    for (const Instruction& instruction : lists[0]) EXPECT_FALSE(is_transfer(instruction.operation));
    EXPECT_EQ(lists[0].size(), 9u);
  }
}

TEST(PipelineSchedule, NamesAreReadBack) {
  for (const ScheduleKind kind : kinds) EXPECT_EQ(parse_schedule_kind(name_of(kind)), kind);
  EXPECT_THROW(parse_schedule_kind("2f2b"), UserError);
  EXPECT_THROW(make_schedule(ScheduleKind::gpipe, 0, 1), InternalError);
  EXPECT_THROW(make_schedule(ScheduleKind::gpipe, 1, 0), InternalError);
}

}  // namespace
}  // namespace fulmen
