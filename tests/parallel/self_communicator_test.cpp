// The communicator of a single rank.
#include <gtest/gtest.h>

#include "parallel/communicator.h"
#include "tests/parallel/host_tensor.h"

namespace fulmen {
namespace {

TEST(SelfCommunicator, CollectivesAreCopies) {
  const auto self = make_self_communicator();
  EXPECT_EQ(self->rank(), 0);
  EXPECT_EQ(self->size(), 1);
  for (const std::int64_t count : {0, 1, 257}) {
    const auto original = random_values<float>(count, 7);
    auto values = original;
    self->all_reduce(tensor_of(values), ReduceOp::sum, {});
    self->start_all_reduce(tensor_of(values), ReduceOp::max, {}).wait();
    self->broadcast(tensor_of(values), 0, {});
    EXPECT_EQ(values, original);
    auto scattered = poisoned<float>(count);
    self->reduce_scatter(tensor_of(values), tensor_of(scattered), ReduceOp::sum, {});
    EXPECT_EQ(scattered, original);
    auto gathered = poisoned<float>(count);
    Pending pending = self->start_all_gather(tensor_of(values), tensor_of(gathered), {});
    pending.wait();
    EXPECT_TRUE(pending.complete());
    EXPECT_EQ(gathered, original);
    self->all_gather(tensor_of(gathered), tensor_of(gathered), {});  // in place
    EXPECT_EQ(gathered, original);
  }
  self->barrier();
  EXPECT_EQ(self->all_reduce(2.5, ReduceOp::min), 2.5);
  EXPECT_EQ(self->all_reduce(std::int64_t{1} << 60, ReduceOp::sum), std::int64_t{1} << 60);
  EXPECT_EQ(self->broadcast_text("text", 0), "text");
  EXPECT_EQ(self->broadcast_text("", 0), "");
}

TEST(SelfCommunicator, ExchangesWithItselfInOrder) {
  const auto self = make_self_communicator();
  auto first = random_values<double>(33, 1), second = random_values<double>(5, 2);
  auto to_first = poisoned<double>(33), to_second = poisoned<double>(5);
  const std::vector<Transfer> transfers = {{Transfer::Direction::receive, 0, tensor_of(to_first)},
                                           {Transfer::Direction::send, 0, tensor_of(first)},
                                           {Transfer::Direction::send, 0, tensor_of(second)},
                                           {Transfer::Direction::receive, 0, tensor_of(to_second)}};
  self->exchange(transfers, {});
  EXPECT_EQ(to_first, first);
  EXPECT_EQ(to_second, second);
  self->start_exchange({}, {}).wait();
}

TEST(SelfCommunicator, RefusesWhatDoesNotFit) {
  const auto self = make_self_communicator();
  std::vector<float> three(3), four(4);
  EXPECT_THROW(self->all_gather(tensor_of(three), tensor_of(four), {}), InternalError);
  EXPECT_THROW(self->reduce_scatter(tensor_of(three), tensor_of(four), ReduceOp::sum, {}), InternalError);
  EXPECT_THROW(self->broadcast(tensor_of(three), 1, {}), InternalError);
  EXPECT_THROW(self->subgroup({1}), InternalError);
  const Transfer lone_send{Transfer::Direction::send, 0, tensor_of(three)};
  EXPECT_THROW(self->exchange({&lone_send, 1}, {}), InternalError);
  const std::vector<Transfer> unequal = {lone_send, {Transfer::Direction::receive, 0, tensor_of(four)}};
  EXPECT_THROW(self->exchange(unequal, {}), InternalError);
  const Transfer elsewhere{Transfer::Direction::send, 1, tensor_of(three)};
  EXPECT_THROW(self->exchange({&elsewhere, 1}, {}), InternalError);
  std::vector<float> square(16);
  const Tensor column = Tensor(square.data(), DType::fp32, {4, 4}).slice(1, 0, 2);
  EXPECT_THROW(self->all_reduce(column, ReduceOp::sum, {}), InternalError);
}

TEST(SelfCommunicator, SubgroupIsItsLike) {
  const auto group = make_self_communicator()->subgroup({0});
  EXPECT_EQ(group->size(), 1);
  EXPECT_EQ(group->all_reduce(3.0, ReduceOp::sum), 3.0);
}

TEST(SelfCommunicator, AbortEndsTheProcessWithTheCode) {
  EXPECT_EXIT(make_self_communicator()->abort(3), testing::ExitedWithCode(3), "");
}

// Counts what happens to it.
struct CountedOperation final : Pending::Operation {
  explicit CountedOperation(int& waits) : waits_(waits) {}
  void wait(Stream) override { ++waits_; }
  int& waits_;
};

TEST(Pending, WaitsOnceAndOnDestructionAndOnAssignment) {
  int waits = 0;
  const auto start = [&] { return Pending(std::make_unique<CountedOperation>(waits)); };
  {
    Pending pending = start();
    EXPECT_FALSE(pending.complete());
    pending.wait();
    EXPECT_TRUE(pending.complete());
    pending.wait();
    EXPECT_EQ(waits, 1);
  }
  EXPECT_EQ(waits, 1);
  { const Pending pending = start(); }
  EXPECT_EQ(waits, 2);
  Pending pending = start();
  pending = start();
  EXPECT_EQ(waits, 3);
  const Pending moved = std::move(pending);
  EXPECT_EQ(waits, 3);
  EXPECT_FALSE(moved.complete());
}

TEST(Pending, IsAbandonedWhileAnExceptionUnwinds) {
  int waits = 0;
  try {
    const Pending pending(std::make_unique<CountedOperation>(waits));
    throw InternalError("another rank will never come");
  } catch (const InternalError&) {
  }
  EXPECT_EQ(waits, 0);
}

}  // namespace
}  // namespace fulmen
