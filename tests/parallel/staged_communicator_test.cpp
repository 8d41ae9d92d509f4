// The staged communicator without a GPU: CPU tensors go straight through, and what is refused needs none.
#include "parallel/staged_communicator.h"

#include <gtest/gtest.h>

#include "framework/gpu.h"
#include "parallel/nccl_communicator.h"
#include "tests/parallel/host_tensor.h"
#include "tests/parallel/rank_groups.h"

namespace fulmen {
namespace {

std::unique_ptr<Communicator> staged_world() {
  return make_staged_communicator(test_world().subgroup(first_ranks(test_world().size())), Device::cuda(0));
}

std::vector<std::int64_t> values_of(int rank, std::int64_t count) {
  return random_values<std::int64_t>(count, static_cast<unsigned>(rank));
}

void check_cpu_tensors(Communicator& group, bool started) {
  const auto size = static_cast<std::size_t>(group.size());
  auto own = values_of(group.rank(), group.size());
  std::vector<std::int64_t> sums(size), all;
  for (int rank = 0; rank < group.size(); ++rank) {
    const auto others = values_of(rank, group.size());
    for (std::size_t i = 0; i < size; ++i) sums[i] += others[i];
    all.insert(all.end(), others.begin(), others.end());
  }
  auto gathered = poisoned<std::int64_t>(group.size() * group.size());
  auto scattered = poisoned<std::int64_t>(1);
  auto reduced = own;
  auto received = poisoned<std::int64_t>(group.size());
  const int next = (group.rank() + 1) % group.size(), previous = (group.rank() + group.size() - 1) % group.size();
  const std::vector<Transfer> ring = {{Transfer::Direction::send, next, tensor_of(own)},
                                      {Transfer::Direction::receive, previous, tensor_of(received)}};
  if (started) {
    group.start_all_gather(tensor_of(own), tensor_of(gathered), {}).wait();
    group.start_reduce_scatter(tensor_of(own), tensor_of(scattered), ReduceOp::sum, {}).wait();
    group.start_all_reduce(tensor_of(reduced), ReduceOp::sum, {}).wait();
    group.start_exchange(ring, {}).wait();
  } else {
    group.all_gather(tensor_of(own), tensor_of(gathered), {});
    group.reduce_scatter(tensor_of(own), tensor_of(scattered), ReduceOp::sum, {});
    group.all_reduce(tensor_of(reduced), ReduceOp::sum, {});
    group.exchange(ring, {});
  }
  EXPECT_EQ(gathered, all);
  EXPECT_EQ(scattered.front(), sums[static_cast<std::size_t>(group.rank())]);
  EXPECT_EQ(reduced, sums);
  EXPECT_EQ(received, values_of(previous, group.size()));
  group.broadcast(tensor_of(own), group.size() - 1, {});
  EXPECT_EQ(own, values_of(group.size() - 1, group.size()));
}

TEST(StagedCommunicator, PassesCpuTensorsOn) {
  const auto world = staged_world();
  EXPECT_EQ(world->rank(), test_world().rank());
  EXPECT_EQ(world->size(), test_world().size());
  for (const bool started : {false, true}) check_cpu_tensors(*world, started);
  EXPECT_EQ(world->all_reduce(0.5, ReduceOp::sum), 0.5 * world->size());
  EXPECT_EQ(world->all_reduce(std::int64_t{world->rank()}, ReduceOp::max), world->size() - 1);
  EXPECT_EQ(world->broadcast_text(world->rank() == 0 ? "told" : "", 0), "told");
  world->barrier();
}

TEST(StagedCommunicator, SubgroupIsOfTheHostsSubgroup) {
  const auto world = staged_world();
  if (world->rank() > 2 || world->size() < 3) return;
  const auto group = world->subgroup({2, 0, 1});
  EXPECT_EQ(group->size(), 3);
  EXPECT_EQ(group->rank(), (world->rank() + 1) % 3);
  check_cpu_tensors(*group, false);
  // It is staged, too: it asks for the device's stream where the host's communicator would refuse the device.
  float value = 0.0f;
  const Tensor on_device(&value, DType::fp32, {1}, Device::cuda(0));
  try {
    group->all_reduce(on_device, ReduceOp::sum, Stream{});
    ADD_FAILURE() << "a CPU stream for a device tensor was taken";
  } catch (const InternalError& error) {
    EXPECT_NE(std::string(error.what()).find("a stream of host memory"), std::string::npos) << error.what();
  }
}

TEST(StagedCommunicator, RefusesWhatLiesApart) {
  const auto self = make_staged_communicator(make_self_communicator(), Device::cuda(0));
  std::vector<float> memory(8);
  const Tensor host = tensor_of(memory);
  const Tensor device(memory.data(), DType::fp32, {8}, Device::cuda(0));
  const Tensor elsewhere(memory.data(), DType::fp32, {8}, Device::cuda(1));
  const Stream stream{Device::cuda(0), nullptr};
  EXPECT_THROW(self->all_gather(host, device, stream), InternalError);
  EXPECT_THROW(self->all_gather(device, host, stream), InternalError);
  EXPECT_THROW(self->reduce_scatter(host, device, ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(self->all_reduce(elsewhere, ReduceOp::sum, stream), InternalError);
  EXPECT_THROW(self->broadcast(device, 0, Stream{}), InternalError);
  EXPECT_THROW(self->broadcast(device, 1, stream), InternalError);
  const std::vector<Transfer> mixed = {{Transfer::Direction::send, 0, host}, {Transfer::Direction::receive, 0, device}};
  EXPECT_THROW(self->exchange(mixed, stream), InternalError);
}

TEST(StagedCommunicator, SaysThatThereIsNoGpu) {
  if (gpu::unavailable_reason().empty()) GTEST_SKIP() << "there is a GPU";
  const auto self = make_staged_communicator(make_self_communicator(), Device::cuda(0));
  float value = 0.0f;
  const Tensor tensor(&value, DType::fp32, {1}, Device::cuda(0));
  EXPECT_THROW(self->all_reduce(tensor, ReduceOp::sum, Stream{Device::cuda(0), nullptr}), UserError);
  EXPECT_THROW(make_nccl_communicator(make_self_communicator(), Device::cuda(0)), UserError);
}

}  // namespace
}  // namespace fulmen
