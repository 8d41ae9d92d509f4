// Both schedules run over real MPI, with messages of 2 MiB that no eager buffer holds and an addition for every stage.
#include <gtest/gtest.h>

#include <map>

#include "parallel/pipeline_schedule.h"
#include "parallel/schedule_checker.h"
#include "tests/parallel/host_tensor.h"
#include "tests/parallel/rank_groups.h"

namespace fulmen {
namespace {

constexpr std::int64_t elements = (std::int64_t{2} << 20) / 8;

// Element i of the activations of micro-batch m before stage s is 1000 m + s + i. The gradients are the negatives of
// the last stage's output, plus 1 for every stage on the way back.
class StageRunner {
 public:
  StageRunner(Communicator& pipeline, int micro_batches) : pipeline_(pipeline), micro_batches_(micro_batches) {}

  void run(const InstructionList& list) {
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (is_transfer(list[i].operation))
        i = run_group(list, i);
      else
        compute(list[i]);
    }
    EXPECT_TRUE(activations_.empty());
    EXPECT_TRUE(gradients_.empty());
    EXPECT_EQ(weights_updated_, micro_batches_);
  }

 private:
  using Buffers = std::map<int, std::vector<double>>;  // by micro-batch

  // Returns the position of the group's last transfer.
  std::size_t run_group(const InstructionList& list, std::size_t first) {
    std::size_t last = first;
    while (list[last].with_next) ++last;
    std::vector<Transfer> transfers;
    for (std::size_t i = first; i <= last; ++i) transfers.push_back(transfer_of(list[i]));
    pipeline_.exchange(transfers, {});
    for (std::size_t i = first; i <= last; ++i) {
      if (list[i].operation == Operation::send_forward) activations_.erase(list[i].micro_batch);
      if (list[i].operation == Operation::send_backward) gradients_.erase(list[i].micro_batch);
    }
    return last;
  }

  Transfer transfer_of(const Instruction& instruction) {
    const bool forward =
        instruction.operation == Operation::send_forward || instruction.operation == Operation::receive_forward;
    const bool send =
        instruction.operation == Operation::send_forward || instruction.operation == Operation::send_backward;
    Buffers& buffers = forward ? activations_ : gradients_;
    if (!send) buffers[instruction.micro_batch] = poisoned<double>(elements);
    return {send ? Transfer::Direction::send : Transfer::Direction::receive, instruction.peer,
            tensor_of(buffers.at(instruction.micro_batch))};
  }

  void compute(const Instruction& instruction) {
    const int m = instruction.micro_batch;
    if (instruction.operation == Operation::forward) forward(m);
    if (instruction.operation == Operation::backward_input) backward_input(m);
    if (instruction.operation == Operation::backward_weight) ++weights_updated_;
  }

  bool is_last() const { return pipeline_.rank() + 1 == pipeline_.size(); }

  void forward(int m) {
    if (pipeline_.rank() == 0) activations_[m] = values(1000.0 * m, 1.0);
    std::vector<double>& activations = activations_.at(m);
    EXPECT_EQ(activations, values(1000.0 * m + pipeline_.rank(), 1.0)) << "activations of micro-batch " << m;
    for (double& value : activations) value += 1.0;
  }

  void backward_input(int m) {
    if (is_last()) {
      gradients_[m] = std::move(activations_.at(m));
      activations_.erase(m);
      for (double& value : gradients_[m]) value = -value;
    }
    std::vector<double>& gradients = gradients_.at(m);
    const int stages_passed = pipeline_.size() - 1 - pipeline_.rank();
    EXPECT_EQ(gradients, values(-1000.0 * m - pipeline_.size() + stages_passed, -1.0)) << "gradients of " << m;
    for (double& value : gradients) value += 1.0;
    if (pipeline_.rank() == 0) gradients_.erase(m);
  }

  static std::vector<double> values(double first, double step) {
    std::vector<double> result(static_cast<std::size_t>(elements));
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = first + step * static_cast<double>(i);
    return result;
  }

  Communicator& pipeline_;
  int micro_batches_;
  Buffers activations_, gradients_;
  int weights_updated_ = 0;
};

TEST(PipelineTransfers, EveryScheduleDeliversEveryMicroBatch) {
  for (const ScheduleKind kind : {ScheduleKind::gpipe, ScheduleKind::one_forward_one_backward,
                                  ScheduleKind::interleaved, ScheduleKind::zero_bubble})
    for (const int stages : {1, 2, 3, 4})
      on_first_ranks(test_world(), std::min(stages, test_world().size()), [&](Communicator& pipeline) {
        for (const int micro_batches : {1, 3, 4, 6}) {
          SCOPED_TRACE(fmt::format("{} with {} micro-batches", name_of(kind), micro_batches));
          const auto lists = make_schedule(kind, pipeline.size(), micro_batches);
          StageRunner(pipeline, micro_batches).run(lists[static_cast<std::size_t>(pipeline.rank())]);
        }
      });
}

TEST(PipelineTransfers, EightStages) {
  Communicator& world = test_world();
  const auto lists = make_schedule(ScheduleKind::one_forward_one_backward, world.size(), 10);
  StageRunner(world, 10).run(lists[static_cast<std::size_t>(world.rank())]);
}

}  // namespace
}  // namespace fulmen
