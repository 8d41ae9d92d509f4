// Finds a pipeline schedule that is short for stages of given costs.
#include "parallel/schedule_search.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "parallel/schedule_checker.h"

namespace fulmen {
namespace {

// Passes simulated in a search, at most: well below a tenth of a second.
constexpr std::int64_t most_passes = 150'000;

std::vector<ListScheduleRules> rules_to_try(bool weights_wait) {
  std::vector<ListScheduleRules> list;
  for (const bool far_ahead : {false, true})
    for (const bool backward_first : {false, true})
      for (const bool patient : {false, true})
        for (const bool joined : {false, true})
          if (weights_wait || !(patient || joined))
            list.push_back({weights_wait, joined, patient, backward_first, far_ahead});
  return list;
}

class ScheduleSearch {
 public:
  ScheduleSearch(bool weights_wait, const PipelineShape& shape, const ScheduleCosts& costs)
      : weights_wait_(weights_wait), shape_(shape), costs_(costs), rules_(rules_to_try(weights_wait)) {
    const int stages = shape.ranks * shape.chunks;
    if (costs_.stages.empty()) costs_.stages.resize(static_cast<std::size_t>(stages));
    tries_ =
        std::max(std::int64_t{1}, most_passes / (std::int64_t{3} * shape.ranks * shape.micro_batches * shape.chunks));
  }

  std::vector<InstructionList> find(std::vector<std::vector<InstructionList>> known) {
    for (auto& lists : known) improve(std::move(lists));
    const auto ranks = static_cast<std::size_t>(shape_.ranks);
    // As if all passes were equal, which is sometimes better than what the costs suggest from one pass to the next.
    const std::vector<ListScheduleRules> simple(ranks, {.weights_wait = weights_wait_});
    improve(make_list_schedule(simple, shape_, std::vector<PassCosts>(costs_.stages.size())));
    std::vector<ListScheduleRules> best(ranks);
    for (const ListScheduleRules& rules : rules_)
      if (const std::vector<ListScheduleRules> all(ranks, rules); improves(all)) best = all;
    for (bool improved = true; improved;) {
      improved = false;
      for (std::size_t rank = 0; rank < ranks; ++rank)
        for (const ListScheduleRules& rules : rules_) {
          if (rank > 0 && rules.joined) continue;  // only the first stage sends nothing between the two
          auto changed = best;
          changed[rank] = rules;
          if (!improves(changed)) continue;
          best = changed;
          improved = true;
        }
    }
    return std::move(lists_);
  }

 private:
  // Smaller is better.
  struct Score {
    double makespan;
    int apart;  // weight gradients that do not run as one with their backward_input
  };

  bool improves(const std::vector<ListScheduleRules>& rules) {
    if (tries_ == 0) return false;
    --tries_;
    return improve(make_list_schedule(rules, shape_, costs_.stages));
  }

  bool improve(std::vector<InstructionList> lists) {
    if (lists == lists_) return false;
    const Score score{check_schedule(lists, shape_.micro_batches, shape_.chunks, costs_).makespan, apart(lists)};
    const double margin = best_ ? best_->makespan * 1e-9 : 0.0;  // sums in another order
    if (best_ && !(score.makespan < best_->makespan - margin) &&
        !(score.makespan <= best_->makespan + margin && score.apart < best_->apart))
      return false;
    best_ = score;
    lists_ = std::move(lists);
    return true;
  }

  static int apart(const std::vector<InstructionList>& lists) {
    int count = 0;
    for (const InstructionList& list : lists)
      for (std::size_t i = 1; i < list.size(); ++i) {
        const Instruction &before = list[i - 1], &here = list[i];
        const bool joined = before.operation == Operation::backward_input && before.micro_batch == here.micro_batch &&
                            before.chunk == here.chunk;
        if (here.operation == Operation::backward_weight && !joined) ++count;
      }
    return count;
  }

  bool weights_wait_;
  PipelineShape shape_;
  ScheduleCosts costs_;
  std::vector<ListScheduleRules> rules_;
  std::int64_t tries_;
  std::optional<Score> best_;
  std::vector<InstructionList> lists_;
};

}  // namespace

std::vector<InstructionList> find_list_schedule(bool weights_wait, const PipelineShape& shape,
                                                const ScheduleCosts& costs,
                                                std::vector<std::vector<InstructionList>> known) {
  return ScheduleSearch(weights_wait, shape, costs).find(std::move(known));
}

}  // namespace fulmen
