// Exchanges and sums by copy engines, between ranks that share a GPU or have one each.
#include "parallel/peer_copies.h"

#include <gtest/gtest.h>

#include "framework/gpu.h"
#include "tests/parallel/rank_groups.h"
#include "tests/parallel/test_communicator.h"

namespace fulmen {
namespace {

constexpr std::int64_t small = 1'000, several_pieces = (std::int64_t{37} << 18) + 5;  // fp32: 37 MiB and 20 bytes

std::vector<float> numbers_of(int sender, int receiver, int round, std::int64_t count) {
  return random_values<float>(count, static_cast<unsigned>(1000 * round + 10 * sender + receiver));
}

class OnDevicePeerCopies : public testing::Test {
 protected:
  void SetUp() override {
    if (test_transport() == TestTransport::mpi) GTEST_SKIP() << "needs FULMEN_TEST_DEVICE=cuda";
  }
};

// To and from the neighbours on both sides at once, each round before the last was waited for.
TEST_F(OnDevicePeerCopies, ArriveInOrderWhole) {
  // The ranks of one host are asked over MPI; a communicator of host tensors serves.
  Communicator& world = test_communicator();
  const std::unique_ptr<PeerCopies> copies = open_peer_copies(world, test_execution().device);
  ASSERT_NE(copies, nullptr) << "this GPU's memory cannot be shared between processes";
  const int ranks = world.size(), rank = world.rank(), next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
  if (ranks == 1) GTEST_SKIP() << "needs two ranks";
  for (const std::int64_t count : {std::int64_t{1}, small, several_pieces}) {
    SCOPED_TRACE(count);
    struct Round {
      Values<float> to_next, to_previous, from_next, from_previous;
    };
    constexpr int rounds = 3;
    std::vector<Round> all;
    for (int round = 0; round < rounds; ++round) {
      const std::vector<float> poison(static_cast<std::size_t>(count), -1.0f);
      all.push_back({Values<float>(numbers_of(rank, next, round, count)),
                     Values<float>(numbers_of(rank, previous, round + 50, count)), Values<float>(poison),
                     Values<float>(poison)});
    }
    gpu::synchronize(test_stream());
    std::vector<Pending> pending;
    for (Round& round : all) {
      const std::vector<Transfer> transfers = {{Transfer::Direction::send, next, tensor_of(round.to_next)},
                                               {Transfer::Direction::receive, previous, tensor_of(round.from_previous)},
                                               {Transfer::Direction::send, previous, tensor_of(round.to_previous)},
                                               {Transfer::Direction::receive, next, tensor_of(round.from_next)}};
      pending.push_back(copies->start_exchange(transfers, test_stream(), nullptr, "exchange"));
    }
    for (Pending& one : pending) one.wait(test_stream());
    for (int round = 0; round < rounds; ++round) {
      SCOPED_TRACE(round);
      const Round& got = all[static_cast<std::size_t>(round)];
      // With two ranks each is the other's neighbour on both sides: the first message sent is received first.
      EXPECT_TRUE(got.from_previous.read() == numbers_of(previous, rank, round, count));
      EXPECT_TRUE(got.from_next.read() == numbers_of(next, rank, round + 50, count));
    }
  }
  world.barrier();
}

template <class T>
std::vector<Number<T>> sums_of(int ranks, int receiver, int round, std::int64_t count) {
  std::vector<Number<T>> sums(static_cast<std::size_t>(count));
  for (int r = 0; r < ranks; ++r) {
    const std::vector<float> share = numbers_of(r, receiver, round, count);
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += static_cast<Number<T>>(share[i]);
  }
  return sums;
}

template <class T>
std::vector<Number<T>> converted(const std::vector<float>& numbers) {
  return {numbers.begin(), numbers.end()};
}

// Sums in both forms and exchanges in one order, none waited for before all are started. `count` elements of each
// rank's part; the reduced tensor has some more, so that parts are not equal.
template <class T>
void expect_sums(PeerCopies& copies, std::int64_t count) {
  const Communicator& world = test_communicator();
  const int ranks = world.size(), rank = world.rank(), next = (rank + 1) % ranks, previous = (rank + ranks - 1) % ranks;
  const std::int64_t whole = count * ranks + 3;
  struct Round {
    Values<T> scattered, own, in_place, reduced, to_next, from_previous;
  };
  constexpr int rounds = 2;
  std::vector<Round> all;
  for (int round = 0; round < rounds; ++round) {
    std::vector<Number<T>> parts;
    for (int r = 0; r < ranks; ++r) {
      const auto part = converted<T>(numbers_of(rank, r, round, count));
      parts.insert(parts.end(), part.begin(), part.end());
    }
    const std::vector<Number<T>> poison(static_cast<std::size_t>(count), Number<T>{-1});
    all.push_back({Values<T>(parts), Values<T>(poison), Values<T>(parts),
                   Values<T>(converted<T>(numbers_of(rank, 9, round, whole))),
                   Values<T>(converted<T>(numbers_of(rank, next, round + 50, count))), Values<T>(poison)});
  }
  gpu::synchronize(test_stream());
  std::vector<Pending> pending;
  for (Round& round : all) {
    const Tensor in_place = round.in_place.tensor();
    pending.push_back(
        copies.start_reduce_scatter(round.scattered.tensor(), round.own.tensor(), test_stream(), nullptr, "sums"));
    pending.push_back(copies.start_exchange(
        std::vector<Transfer>{{Transfer::Direction::send, next, tensor_of(round.to_next)},
                              {Transfer::Direction::receive, previous, tensor_of(round.from_previous)}},
        test_stream(), nullptr, "exchange"));
    pending.push_back(copies.start_all_reduce(round.reduced.tensor(), test_stream(), nullptr, "sums"));
    pending.push_back(copies.start_reduce_scatter(in_place, in_place.slice(0, rank * count, (rank + 1) * count),
                                                  test_stream(), nullptr, "sums"));
  }
  for (Pending& one : pending) one.wait(test_stream());
  for (int round = 0; round < rounds; ++round) {
    SCOPED_TRACE(round);
    const Round& got = all[static_cast<std::size_t>(round)];
    const auto sums = sums_of<T>(ranks, rank, round, count);
    EXPECT_TRUE(got.own.read() == sums);
    const auto in_place = got.in_place.read();
    EXPECT_TRUE(std::equal(sums.begin(), sums.end(), in_place.begin() + rank * count));
    EXPECT_TRUE(got.reduced.read() == sums_of<T>(ranks, 9, round, whole));
    EXPECT_TRUE(got.from_previous.read() == converted<T>(numbers_of(previous, rank, round + 50, count)));
  }
}

TEST_F(OnDevicePeerCopies, AreAddedUp) {
  Communicator& world = test_communicator();
  const std::unique_ptr<PeerCopies> copies = open_peer_copies(world, test_execution().device);
  ASSERT_NE(copies, nullptr) << "this GPU's memory cannot be shared between processes";
  if (world.size() == 1) GTEST_SKIP() << "needs two ranks";
  for (const std::int64_t count : {std::int64_t{1}, small, several_pieces}) {
    SCOPED_TRACE(count);
    expect_sums<float>(*copies, count);
  }
  expect_sums<BFloat16>(*copies, several_pieces);
  expect_sums<double>(*copies, several_pieces);
  world.barrier();
}

// More pieces than the driver keeps of a stream's work, so that the host itself waits while it starts an operation.
TEST_F(OnDevicePeerCopies, AreMorePiecesThanAStreamHolds) {
  Communicator& world = test_communicator();
  constexpr std::size_t piece_bytes = 1024;
  const std::unique_ptr<PeerCopies> copies = open_peer_copies(world, test_execution().device, piece_bytes);
  ASSERT_NE(copies, nullptr) << "this GPU's memory cannot be shared between processes";
  if (world.size() == 1) GTEST_SKIP() << "needs two ranks";
  expect_sums<float>(*copies, 3000 * static_cast<std::int64_t>(piece_bytes / sizeof(float)) + 5);
  world.barrier();
}

}  // namespace
}  // namespace fulmen
