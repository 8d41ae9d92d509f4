// The effect of each rule of list scheduling, and lists that the search finds without any single rule.
#include "parallel/list_schedule.h"

#include <gtest/gtest.h>

#include <random>

#include "framework/error.h"
#include "parallel/pipeline_schedule.h"
#include "parallel/schedule_checker.h"

namespace fulmen {
namespace {

using Lists = std::vector<InstructionList>;

Lists make(const ListScheduleRules& rules, const PipelineShape& shape, const std::vector<PassCosts>& stages) {
  return make_list_schedule(std::vector<ListScheduleRules>(static_cast<std::size_t>(shape.ranks), rules), shape,
                            stages);
}

// "F0 F1 B0 W0": the passes of a list of one chunk.
std::string passes_of(const InstructionList& list) {
  std::string text;
  for (const Instruction& instruction : list) {
    const auto place = static_cast<std::size_t>(instruction.operation);
    if (place > static_cast<std::size_t>(Operation::backward_weight)) continue;
    text += fmt::format("{}{}{}", text.empty() ? "" : " ", "FBW"[place], instruction.micro_batch);
  }
  return text;
}

TEST(ListSchedule, WeightGradientsFollowTheirBackwardOrWaitForIdleTime) {
  const std::vector<PassCosts> equal(2);
  EXPECT_EQ(passes_of(make({}, {2, 3, 1}, equal)[1]), "F0 B0 W0 F1 B1 W1 F2 B2 W2");
  const Lists waiting = make({.weights_wait = true}, {2, 3, 1}, equal);
  EXPECT_EQ(passes_of(waiting[0]), "F0 F1 B0 W0 F2 B1 W1 B2 W2");
  EXPECT_EQ(passes_of(waiting[1]), "F0 B0 F1 B1 W0 F2 B2 W1 W2");
}

// Rank 1 has B0 behind it at 4, and its next input is there at 4.5: a weight gradient would end at 5.
TEST(ListSchedule, APatientRankWaitsForWhatIsAboutToBeReady) {
  const std::vector<PassCosts> stages = {{2.25, 1.0, 1.0}, {1.0, 0.75, 1.0}};
  EXPECT_EQ(passes_of(make({.weights_wait = true}, {2, 2, 1}, stages)[1]), "F0 B0 W0 F1 B1 W1");
  EXPECT_EQ(passes_of(make({.weights_wait = true, .patient = true}, {2, 2, 1}, stages)[1]), "F0 B0 F1 B1 W0 W1");
}

// The first rank's third forward pass lasts until two gradients are there.
TEST(ListSchedule, TheFirstStageMayRunBothBackwardPassesAsOne) {
  const std::vector<PassCosts> stages = {{4.0, 1.0, 1.0}, {1.0, 1.0, 1.0}, {1.0, 1.0, 1.0}};
  EXPECT_EQ(passes_of(make({.weights_wait = true}, {3, 3, 1}, stages)[0]), "F0 F1 F2 B0 B1 W0 W1 B2 W2");
  EXPECT_EQ(passes_of(make({.weights_wait = true, .joined = true}, {3, 3, 1}, stages)[0]),
            "F0 F1 F2 B0 W0 B1 W1 B2 W2");
}

TEST(ListSchedule, TheLastRankMayGoAheadAsFarAsStashesAllow) {
  const std::vector<PassCosts> stages = {{1.0, 1.0, 1.0}, {1.0, 1.0, 1.0}};
  EXPECT_EQ(passes_of(make({.weights_wait = true, .far_ahead = true}, {2, 2, 1}, stages)[1]), "F0 F1 B0 B1 W0 W1");
  EXPECT_EQ(passes_of(make({.weights_wait = true, .backward_first = true, .far_ahead = true}, {2, 2, 1}, stages)[1]),
            "F0 B0 F1 B1 W0 W1");
}

// Micro-batch 1 comes while B0 runs, so its receive can be under way then: it does not go with the gradient that B0
// makes.
TEST(ListSchedule, AReceiveDoesNotWaitForAPassThatEndsLater) {
  const auto transfers = [](const InstructionList& list) {
    std::vector<std::string> texts;
    for (const Instruction& instruction : list)
      if (is_transfer(instruction.operation)) texts.push_back(to_string(instruction));
    return texts;
  };
  EXPECT_EQ(transfers(make({}, {2, 2, 1}, {{2.0, 1.0, 1.0}, {1.0, 3.0, 1.0}})[1]),
            (std::vector<std::string>{"receive_forward m0 c0 <- 0", "receive_forward m1 c0 <- 0",
                                      "send_backward m0 c0 -> 0", "send_backward m1 c0 -> 0"}));
  // Both at the same time.
  EXPECT_EQ(transfers(make({}, {2, 2, 1}, {{2.0, 1.0, 1.0}, {1.0, 1.0, 1.0}})[1])[1],
            "receive_forward m1 c0 <- 0 with next");
}

// One draw of costs for each shape, from none to four times another stage's, some passes free.
class UnequalCosts {
 public:
  ScheduleCosts draw(const PipelineShape& shape, bool overlap) {
    ScheduleCosts costs{.stages = {}, .transfer = 0.0, .overlap = overlap};
    for (int stage = 0; stage < shape.ranks * shape.chunks; ++stage) {
      costs.stages.push_back({0.5 + 1.5 * share_(random_), 0.5 + 1.5 * share_(random_), 0.5 + 1.5 * share_(random_)});
      if (share_(random_) < 0.1) costs.stages.back().backward_weight = 0.0;
    }
    if (share_(random_) < 0.5) costs.stages.back().forward *= 2.0;
    return costs;
  }

 private:
  std::mt19937 random_{20};
  std::uniform_real_distribution<double> share_{0.0, 1.0};
};

// All promises, for unequal stages. The checker passes, and no rank keeps more stashes than the first rank in 1F1B.
// Zero-bubble is never slower than 1F1B, nor than with equal passes in mind.
TEST(ListSchedule, UnequalStagesKeepThePromises) {
  UnequalCosts unequal;
  int shorter = 0, shapes = 0;
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (int micro_batches = 1; micro_batches <= 16; ++micro_batches)
      for (int chunks = 1; chunks <= (ranks > 1 ? 3 : 1); ++chunks) {
        SCOPED_TRACE(fmt::format("{} ranks, {} micro-batches, {} chunks", ranks, micro_batches, chunks));
        const PipelineShape shape{ranks, micro_batches, chunks};
        const ScheduleCosts costs = unequal.draw(shape, micro_batches % 3 != 0);
        const auto report = [&](ScheduleKind kind) {
          return check_schedule(make_schedule(kind, ranks, micro_batches, chunks, costs), micro_batches, chunks, costs);
        };
        const ScheduleReport interleaved = report(ScheduleKind::interleaved),
                             zero_bubble = report(ScheduleKind::zero_bubble);
        for (const ScheduleReport& one : {interleaved, zero_bubble})
          for (const int stash : one.peak_stash)
            EXPECT_LE(stash, std::min(most_stashes(shape), micro_batches * chunks));
        const double nearly = 1.0 + 1e-8;
        EXPECT_LE(zero_bubble.makespan, interleaved.makespan * nearly);
        if (chunks == 1) {
          EXPECT_LE(zero_bubble.makespan, report(ScheduleKind::one_forward_one_backward).makespan * nearly);
        }
        const Lists in_mind = make({.weights_wait = true}, shape, std::vector<PassCosts>(costs.stages.size()));
        EXPECT_LE(zero_bubble.makespan, check_schedule(in_mind, micro_batches, chunks, costs).makespan * nearly);
        ++shapes;
        if (zero_bubble.makespan < interleaved.makespan * (1.0 - 1e-8)) ++shorter;
      }
  EXPECT_GT(shorter, shapes * 3 / 4);
}

// Each rank makes the lists by itself.
TEST(ListSchedule, TheSameCostsGiveTheSameLists) {
  UnequalCosts unequal;
  for (int chunks = 1; chunks <= 3; ++chunks) {
    const ScheduleCosts costs = unequal.draw({4, 8, chunks}, true), others = unequal.draw({4, 8, chunks}, true);
    for (const ScheduleKind kind : {ScheduleKind::interleaved, ScheduleKind::zero_bubble}) {
      const Lists lists = make_schedule(kind, 4, 8, chunks, costs);
      EXPECT_EQ(make_schedule(kind, 4, 8, chunks, costs), lists);
      EXPECT_NE(make_schedule(ScheduleKind::zero_bubble, 4, 8, chunks, others), lists);
    }
  }
}

// No rule is taken for granted: whatever a rank prefers, the lists are in order, and no rank is left standing.
TEST(ListSchedule, AnyRulesOnAnyRanksPassTheChecker) {
  UnequalCosts unequal;
  std::mt19937 random(7);
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (int micro_batches = 1; micro_batches <= 16; ++micro_batches)
      for (int chunks = 1; chunks <= (ranks > 1 ? 3 : 1); ++chunks)
        for (int i = 0; i < 4; ++i) {
          SCOPED_TRACE(fmt::format("{} ranks, {} micro-batches, {} chunks", ranks, micro_batches, chunks));
          const PipelineShape shape{ranks, micro_batches, chunks};
          const ScheduleCosts costs = unequal.draw(shape, true);
          std::vector<ListScheduleRules> rules;
          for (int rank = 0; rank < ranks; ++rank) {
            const auto bits = random();
            rules.push_back({(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0, (bits & 16) != 0});
          }
          const ScheduleReport report =
              check_schedule(make_list_schedule(rules, shape, costs.stages), micro_batches, chunks, costs);
          for (const int stash : report.peak_stash) EXPECT_LE(stash, most_stashes(shape));
        }
}

}  // namespace
}  // namespace fulmen
