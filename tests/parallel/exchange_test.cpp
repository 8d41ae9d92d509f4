// Point-to-point transfers in groups over MPI. Messages of 4 MiB are far beyond any eager buffer, so that an exchange
// that does not proceed together would hang.
#include <gtest/gtest.h>

#include "tests/parallel/host_tensor.h"
#include "tests/parallel/rank_groups.h"

namespace fulmen {
namespace {

constexpr std::int64_t large = std::int64_t{4} << 20;   // bytes

std::vector<double> message(std::int64_t count, int from, int to, unsigned number = 0) {
  return random_values<double>(count, static_cast<unsigned>(from * 100 + to) * 10 + number);
}

Transfer send_to(int peer, std::vector<double>& values) {
  return {Transfer::Direction::send, peer, tensor_of(values)};
}

Transfer receive_from(int peer, std::vector<double>& values) {
  return {Transfer::Direction::receive, peer, tensor_of(values)};
}

void check_ring(Communicator& group, std::int64_t count, bool started) {
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  auto outgoing = message(count, group.rank(), next);
  auto incoming = poisoned<double>(count);
  const std::vector<Transfer> transfers = {send_to(next, outgoing), receive_from(previous, incoming)};
  if (started)
    group.start_exchange(transfers, {}).wait();
  else
    group.exchange(transfers, {});
  EXPECT_EQ(incoming, message(count, previous, group.rank()));
}

TEST(Exchange, AroundTheRing) {
  on_each_count_of_ranks(test_world(), [](Communicator& group) {   // on one rank it is with itself
    for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, large / 8})
      for (const bool started : {false, true}) check_ring(group, count, started);
  });
}

TEST(Exchange, AroundTheRingInPieces) {
  const auto world = test_session().world(1000);
  for (const std::int64_t count : {0, 1, 999, 1000, 1001, 50'000}) check_ring(*world, count, false);
}

TEST(Exchange, OfAllPairsAtOnce) {
  for (const int ranks : {2, 5, 8})
    on_first_ranks(test_world(), std::min(ranks, test_world().size()), [](Communicator& group) {
      const std::int64_t count = group.size() == 2 ? large / 8 : 40'000;
      std::vector<std::vector<double>> outgoing, incoming;
      for (int peer = 0; peer < group.size(); ++peer) {
        outgoing.push_back(message(count + peer, group.rank(), peer));
        incoming.push_back(poisoned<double>(count + group.rank()));
      }
      std::vector<Transfer> transfers;
      for (int peer = 0; peer < group.size(); ++peer) {   // itself included
        transfers.push_back(send_to(peer, outgoing[static_cast<std::size_t>(peer)]));
        transfers.push_back(receive_from(peer, incoming[static_cast<std::size_t>(peer)]));
      }
      group.exchange(transfers, {});
      for (int peer = 0; peer < group.size(); ++peer)
        EXPECT_EQ(incoming[static_cast<std::size_t>(peer)], message(count + group.rank(), peer, group.rank()));
    });
}

TEST(Exchange, KeepsTheOrderOfEachPair) {
  on_first_ranks(test_world(), std::min(2, test_world().size()), [](Communicator& group) {
    const int peer = group.size() - 1 - group.rank();
    // Sizes on both sides of the eager limit, so that a short message could overtake a long one.
    const std::vector<std::int64_t> counts = {300'000, 3, 20'000, 0, 1, 300'000};
    std::vector<std::vector<double>> outgoing, incoming;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      outgoing.push_back(message(counts[i], group.rank(), peer, static_cast<unsigned>(i)));
      incoming.push_back(poisoned<double>(counts[i]));
    }
    const auto transfer_range = [&](std::size_t begin, std::size_t end) {
      std::vector<Transfer> transfers;
      for (std::size_t i = begin; i < end; ++i) transfers.push_back(receive_from(peer, incoming[i]));
      for (std::size_t i = begin; i < end; ++i) transfers.push_back(send_to(peer, outgoing[i]));
      return transfers;
    };
    // Three groups under way at once.
    Pending first = group.start_exchange(transfer_range(0, 2), {});
    Pending second = group.start_exchange(transfer_range(2, 5), {});
    Pending third = group.start_exchange(transfer_range(5, 6), {});
    third.wait();
    second.wait();
    first.wait();
    for (std::size_t i = 0; i < counts.size(); ++i)
      EXPECT_EQ(incoming[i], message(counts[i], peer, group.rank(), static_cast<unsigned>(i))) << i;
  });
}

TEST(Exchange, OneSideMayBeUngrouped) {
  if (test_world().size() < 2) GTEST_SKIP() << "needs 2 ranks";
  on_first_ranks(test_world(), 2, [](Communicator& group) {
    const int peer = 1 - group.rank();
    auto outgoing = message(large / 8, group.rank(), peer);
    auto incoming = poisoned<double>(large / 8);
    const Transfer send = send_to(peer, outgoing), receive = receive_from(peer, incoming);
    if (group.rank() == 0) {
      group.exchange({&send, 1}, {});
      group.exchange({&receive, 1}, {});
    } else {
      const std::vector<Transfer> both = {send, receive};
      group.exchange(both, {});
    }
    EXPECT_EQ(incoming, message(large / 8, peer, group.rank()));
  });
}

TEST(Exchange, MovesHalvesAndBytes) {
  Communicator& world = test_world();
  const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
  auto halves = random_values<std::uint16_t>(77, static_cast<unsigned>(world.rank()));
  auto bytes = random_values<std::uint8_t>(78, static_cast<unsigned>(world.rank()));
  auto to_halves = poisoned<std::uint16_t>(77);
  auto to_bytes = poisoned<std::uint8_t>(78);
  const std::vector<Transfer> transfers = {
      {Transfer::Direction::send, next, Tensor(halves.data(), DType::bf16, {77})},
      {Transfer::Direction::send, next, tensor_of(bytes)},
      {Transfer::Direction::receive, previous, Tensor(to_halves.data(), DType::bf16, {77})},
      {Transfer::Direction::receive, previous, tensor_of(to_bytes)}};
  world.exchange(transfers, {});
  EXPECT_EQ(to_halves, random_values<std::uint16_t>(77, static_cast<unsigned>(previous)));
  EXPECT_EQ(to_bytes, random_values<std::uint8_t>(78, static_cast<unsigned>(previous)));
}

// A message of another length is an error of the receiver, whichever is the longer; the communicator stays usable.
TEST(Exchange, RefusesAMessageOfAnotherLength) {
  if (test_world().size() < 2) GTEST_SKIP() << "needs 2 ranks";
  on_first_ranks(test_world(), 2, [](Communicator& group) {
    for (const std::int64_t expected : {12, 20}) {
      std::vector<double> values(static_cast<std::size_t>(group.rank() == 0 ? 16 : expected));
      if (group.rank() == 0) {
        const Transfer send = send_to(1, values);
        group.exchange({&send, 1}, {});
      } else {
        const Transfer receive = receive_from(0, values);
        EXPECT_THROW(group.exchange({&receive, 1}, {}), InternalError) << expected;
      }
    }
    EXPECT_EQ(group.all_reduce(std::int64_t{1}, ReduceOp::sum), 2);
  });
}

TEST(Exchange, RefusesLoneTransfersToItself) {
  Communicator& world = test_world();
  std::vector<double> values(4);
  const Transfer send = send_to(world.rank(), values);
  EXPECT_THROW(world.exchange({&send, 1}, {}), InternalError);
  const Transfer nowhere = send_to(world.size(), values);
  EXPECT_THROW(world.exchange({&nowhere, 1}, {}), InternalError);
}

}  // namespace
}  // namespace fulmen
