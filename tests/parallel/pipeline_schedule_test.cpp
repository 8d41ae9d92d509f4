// Schedules over many shapes: accepted by the checker, with the stash and the bubble that theory gives.
#include "parallel/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "framework/error.h"

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
  const ScheduleCosts costs{.forward = 1.0, .backward_input = 2.0, .backward_weight = 0.0, .transfer = 0.0};
  for (const ScheduleKind kind : kinds) {
    for (int stages = 1; stages <= 8; ++stages) {
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
  const ScheduleCosts costs{.forward = 1.0, .backward_input = 1.0, .backward_weight = 1.0, .transfer = 0.25};
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
