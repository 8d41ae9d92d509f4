// Promises of communicators of GPU tensors alone: the order of streams, and refusals. Skipped on the CPU.
#include <gtest/gtest.h>

#include <functional>

#include "framework/gpu.h"
#include "tests/parallel/rank_groups.h"
#include "tests/parallel/test_communicator.h"

namespace fulmen {
namespace {

// Elements of a rank: below and above what communicators start to move in other ways.
constexpr std::int64_t few = 10'007, many = 2'500'007;
std::int64_t count = few;

std::vector<float> numbers_of(int rank, unsigned number = 0) {
  return random_values<float>(count, 100 * number + static_cast<unsigned>(rank));
}

std::vector<float> sum_over(int ranks, unsigned number = 0) {
  std::vector<float> sum = numbers_of(0, number);
  for (int rank = 1; rank < ranks; ++rank) {
    const std::vector<float> other = numbers_of(rank, number);
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
  }
  return sum;
}

class OnDevice : public testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override {
    if (test_transport() == TestTransport::mpi) GTEST_SKIP() << "needs FULMEN_TEST_DEVICE=cuda";
    count = GetParam();
    world().connect(Connections::exchanges);
    side_ = gpu::create_stream(test_execution().device);
    delay_from_ = gpu::allocate_pinned(delay_bytes);
    delay_to_ = take_test_memory(delay_bytes);
  }
  void TearDown() override {
    if (side_.handle == nullptr) return;
    gpu::synchronize(side_);
    gpu::synchronize(test_stream());
    gpu::destroy_stream(side_);
    gpu::release_pinned(delay_from_);
    give_back_test_memory(std::move(delay_to_));
  }

  // Copies in stream order, after other copies that take milliseconds: who does not wait for the stream finds `to` as
  // it was.
  void copy_late(Stream stream, const Tensor& from, const Tensor& to) {
    for (int i = 0; i < 4; ++i) gpu::copy(stream, delay_to_.data(), delay_from_, delay_bytes);
    gpu::copy(stream, to.data(), from.data(), from.bytes());
  }

  Communicator& world() { return test_communicator(); }
  Stream side() const { return side_; }

 private:
  static constexpr std::size_t delay_bytes = std::size_t{64} << 20;
  Stream side_;  // next to the stream of the tests
  void* delay_from_ = nullptr;
  Buffer delay_to_;
};

// Each operation, with what it leaves in its output of size() parts.
struct Operation {
  const char* name;
  std::function<void(const Tensor& input, const Tensor& output, Stream stream)> plain;
  std::function<Pending(const Tensor& input, const Tensor& output, Stream stream)> started;
  std::function<std::vector<float>()> expected;
};

Tensor own_part(const Communicator& world, const Tensor& whole) {
  return whole.slice(0, world.rank() * count, (world.rank() + 1) * count);
}

std::vector<Operation> operations(Communicator& world) {
  const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
  const auto ring = [=](const Tensor& input, const Tensor& output) {
    return std::vector<Transfer>{{Transfer::Direction::send, next, input},
                                 {Transfer::Direction::receive, previous, output.slice(0, 0, count)}};
  };
  const auto padded = [&world](std::vector<float> numbers) {
    numbers.resize(static_cast<std::size_t>(count * world.size()), -1.0f);
    return numbers;
  };
  return {
      {"all_reduce",
       [&world](const Tensor& input, const Tensor&, Stream stream) { world.all_reduce(input, ReduceOp::sum, stream); },
       [&world](const Tensor& input, const Tensor&, Stream stream) {
         return world.start_all_reduce(input, ReduceOp::sum, stream);
       },
       [padded] { return padded({}); }},
      {"all_gather",
       [&world](const Tensor& input, const Tensor& output, Stream stream) { world.all_gather(input, output, stream); },
       [&world](const Tensor& input, const Tensor& output, Stream stream) {
         return world.start_all_gather(input, output, stream);
       },
       [&world] {
         std::vector<float> all;
         for (int rank = 0; rank < world.size(); ++rank) {
           const std::vector<float> part = numbers_of(rank);
           all.insert(all.end(), part.begin(), part.end());
         }
         return all;
       }},
      {"reduce_scatter",  // of what all have gathered
       [&world](const Tensor& input, const Tensor& output, Stream stream) {
         world.all_gather(input, output, stream);
         world.reduce_scatter(output, own_part(world, output), ReduceOp::sum, stream);
       },
       [&world](const Tensor& input, const Tensor& output, Stream stream) {
         world.all_gather(input, output, stream);
         return world.start_reduce_scatter(output, own_part(world, output), ReduceOp::sum, stream);
       },
       [&world] {
         std::vector<float> all;
         for (int rank = 0; rank < world.size(); ++rank) {
           std::vector<float> part = numbers_of(rank);
           if (rank == world.rank())
             for (float& x : part) x *= static_cast<float>(world.size());
           all.insert(all.end(), part.begin(), part.end());
         }
         return all;
       }},
      {"exchange",
       [&world, ring](const Tensor& input, const Tensor& output, Stream stream) {
         world.exchange(ring(input, output), stream);
       },
       [&world, ring](const Tensor& input, const Tensor& output, Stream stream) {
         return world.start_exchange(ring(input, output), stream);
       },
       [previous, padded] { return padded(numbers_of(previous)); }}};
}

// The tensors of one case: the input is written late from `source`; input and output are copied to what is read.
struct Tensors {
  explicit Tensors(Communicator& world)
      : source(numbers_of(world.rank())),
        input(std::vector<float>(count, 7.0f)),
        output(std::vector<float>(static_cast<std::size_t>(count * world.size()), -1.0f)),
        read_input(std::vector<float>(count, 8.0f)),
        read_output(std::vector<float>(static_cast<std::size_t>(count * world.size()), -2.0f)) {}

  void copy_results(Stream stream) const {
    gpu::copy(stream, tensor_of(read_input).data(), tensor_of(input).data(), tensor_of(input).bytes());
    gpu::copy(stream, tensor_of(read_output).data(), tensor_of(output).data(), tensor_of(output).bytes());
  }

  void check(Communicator& world, const Operation& operation) const {
    const bool reduced = std::string(operation.name) == "all_reduce";
    EXPECT_EQ(read_input.read(), reduced ? sum_over(world.size()) : numbers_of(world.rank()));
    EXPECT_EQ(read_output.read(), operation.expected());
  }

  Values<float> source, input, output, read_input, read_output;
};

TEST_P(OnDevice, PlainCallsStandInTheOrderOfTheirStream) {
  for (const Operation& operation : operations(world())) {
    SCOPED_TRACE(operation.name);
    const Tensors tensors(world());
    gpu::synchronize(test_stream());
    copy_late(side(), tensor_of(tensors.source), tensor_of(tensors.input));
    operation.plain(tensor_of(tensors.input), tensor_of(tensors.output), side());
    tensors.copy_results(side());
    gpu::synchronize(side());
    tensors.check(world(), operation);
  }
}

TEST_P(OnDevice, StartedCallsFollowTheirStreamAndHoldUpTheOneThatWaits) {
  for (const Operation& operation : operations(world())) {
    SCOPED_TRACE(operation.name);
    const Tensors tensors(world());
    gpu::synchronize(test_stream());
    copy_late(side(), tensor_of(tensors.source), tensor_of(tensors.input));
    Pending pending = operation.started(tensor_of(tensors.input), tensor_of(tensors.output), side());
    pending.wait(test_stream());
    tensors.copy_results(test_stream());
    tensors.check(world(), operation);
  }
}

TEST_P(OnDevice, WaitingWithoutAStreamHoldsUpTheCaller) {
  for (const Operation& operation : operations(world())) {
    SCOPED_TRACE(operation.name);
    const Tensors tensors(world());
    gpu::synchronize(test_stream());
    copy_late(side(), tensor_of(tensors.source), tensor_of(tensors.input));
    operation.started(tensor_of(tensors.input), tensor_of(tensors.output), side());  // its destructor waits, too
    tensors.copy_results(test_stream());
    tensors.check(world(), operation);
  }
}

// Smaller and larger operations in turn, on two streams: none gets another's memory while that is under way.
TEST_P(OnDevice, OperationsFollowEachOtherWithoutWaiting) {
  std::vector<Values<float>> values;
  std::vector<std::vector<float>> expected;
  const std::vector<std::int64_t> lengths = {1'000'000, 10, 3'000'000, 2'000'000, 1, 5'000'000};
  const auto numbers = [&](std::size_t i, int rank) {
    return random_values<float>(lengths[i], static_cast<unsigned>(rank) + 50 * static_cast<unsigned>(i));
  };
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    values.emplace_back(numbers(i, world().rank()));
    expected.push_back(numbers(i, 0));
    for (int rank = 1; rank < world().size(); ++rank) {
      const std::vector<float> other = numbers(i, rank);
      for (std::size_t k = 0; k < other.size(); ++k) expected[i][k] += other[k];
    }
  }
  gpu::synchronize(test_stream());
  for (std::size_t i = 0; i < lengths.size(); ++i)
    world().all_reduce(tensor_of(values[i]), ReduceOp::sum, i % 2 == 0 ? test_stream() : side());
  gpu::synchronize(side());
  for (std::size_t i = 0; i < lengths.size(); ++i) EXPECT_EQ(values[i].read(), expected[i]) << i;
}

TEST_P(OnDevice, TensorsOfOneCallLieTogether) {
  const Values<float> on_device(std::vector<float>(4));
  const Tensor device_tensor = tensor_of(on_device);
  std::vector<float> whole(static_cast<std::size_t>(4 * world().size()));
  const Tensor host_tensor = tensor_of(whole);
  EXPECT_THROW(world().all_gather(device_tensor, host_tensor, test_stream()), InternalError);
  EXPECT_THROW(world().reduce_scatter(host_tensor, device_tensor, ReduceOp::sum, test_stream()), InternalError);
  const std::vector<Transfer> mixed = {{Transfer::Direction::send, world().rank(), device_tensor},
                                       {Transfer::Direction::receive, world().rank(), host_tensor.slice(0, 0, 4)}};
  EXPECT_THROW(world().exchange(mixed, test_stream()), InternalError);
  EXPECT_THROW(world().all_reduce(device_tensor, ReduceOp::sum, Stream{}), InternalError);
  EXPECT_THROW(world().broadcast(device_tensor, 0, Stream{}), InternalError);
  const Tensor elsewhere(device_tensor.data(), DType::fp32, {4}, Device::cuda(device_tensor.device().index + 1));
  EXPECT_THROW(world().all_reduce(elsewhere, ReduceOp::sum, test_stream()), InternalError);
  world().exchange({}, test_stream());
}

// Ranks of a subgroup in another order, started from a group that has communicated before, and from a fresh group.
TEST_P(OnDevice, SubgroupsMoveDeviceTensorsToo) {
  std::vector<int> reversed = first_ranks(world().size());
  std::reverse(reversed.begin(), reversed.end());
  const auto group = world().subgroup(reversed);
  const auto again = group->subgroup(reversed);
  for (Communicator* ranks : {group.get(), again.get()}) {
    const Values<float> own(numbers_of(world().rank()));
    const Values<float> all(std::vector<float>(static_cast<std::size_t>(count * world().size()), -1.0f));
    ranks->all_gather(tensor_of(own), tensor_of(all), test_stream());
    const std::vector<float> gathered = all.read();
    for (int rank = 0; rank < world().size(); ++rank) {
      const int world_rank = ranks == group.get() ? reversed[static_cast<std::size_t>(rank)] : rank;
      EXPECT_EQ(std::vector<float>(gathered.begin() + rank * count, gathered.begin() + (rank + 1) * count),
                numbers_of(world_rank));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, OnDevice, testing::Values(few, many), [](const auto& info) {
  return info.param == few ? std::string("Small") : std::string("Large");
});

}  // namespace
}  // namespace fulmen
