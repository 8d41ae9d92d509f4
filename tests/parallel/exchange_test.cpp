// Point-to-point transfers in groups: over MPI, or of GPU tensors (test_communicator.h). Messages of 4 MiB are far
// beyond any eager buffer, so that an exchange that does not proceed together would hang.
#include <gtest/gtest.h>

#include "tests/parallel/rank_groups.h"
#include "tests/parallel/test_communicator.h"

namespace fulmen {
namespace {

constexpr std::int64_t large = std::int64_t{4} << 20;  // bytes

std::vector<double> message(std::int64_t count, int from, int to, unsigned number = 0) {
  return random_values<double>(count, static_cast<unsigned>(from * 100 + to) * 10 + number);
}

Values<double> message_values(std::int64_t count, int from, int to, unsigned number = 0) {
  return Values<double>(message(count, from, to, number));
}

Values<double> poisoned_values(std::int64_t count) { return Values<double>(poisoned<double>(count)); }

template <class T>
Transfer send_to(int peer, const Values<T>& values) {
  return {Transfer::Direction::send, peer, tensor_of(values)};
}

template <class T>
Transfer receive_from(int peer, const Values<T>& values) {
  return {Transfer::Direction::receive, peer, tensor_of(values)};
}

void check_ring(Communicator& group, std::int64_t count, bool started) {
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  const auto outgoing = message_values(count, group.rank(), next);
  const auto incoming = poisoned_values(count);
  const std::vector<Transfer> transfers = {send_to(next, outgoing), receive_from(previous, incoming)};
  if (started)
    group.start_exchange(transfers, test_stream()).wait(test_stream());
  else
    group.exchange(transfers, test_stream());
  EXPECT_EQ(incoming.read(), message(count, previous, group.rank()));
}

TEST(Exchange, AroundTheRing) {
  on_each_count_of_ranks(test_communicator(), [](Communicator& group) {  // on one rank it is with itself
    for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, large / 8})
      for (const bool started : {false, true}) check_ring(group, count, started);
  });
}

TEST(Exchange, AroundTheRingInPieces) {
  if (test_transport() == TestTransport::nccl) GTEST_SKIP() << "NCCL cuts nothing: its counts have 64 bits";
  const auto world = test_communicator_in_pieces(1000);
  for (const std::int64_t count : {0, 1, 999, 1000, 1001, 50'000}) check_ring(*world, count, false);
}

TEST(Exchange, OfAllPairsAtOnce) {
  for (const int ranks : {2, 5, 8})
    on_first_ranks(test_communicator(), std::min(ranks, test_communicator().size()), [](Communicator& group) {
      const std::int64_t count = group.size() == 2 ? large / 8 : 40'000;
      std::vector<Values<double>> outgoing, incoming;
      for (int peer = 0; peer < group.size(); ++peer) {
        outgoing.push_back(message_values(count + peer, group.rank(), peer));
        incoming.push_back(poisoned_values(count + group.rank()));
      }
      std::vector<Transfer> transfers;
      for (int peer = 0; peer < group.size(); ++peer) {  // itself included
        transfers.push_back(send_to(peer, outgoing[static_cast<std::size_t>(peer)]));
        transfers.push_back(receive_from(peer, incoming[static_cast<std::size_t>(peer)]));
      }
      group.exchange(transfers, test_stream());
      for (int peer = 0; peer < group.size(); ++peer)
        EXPECT_EQ(incoming[static_cast<std::size_t>(peer)].read(), message(count + group.rank(), peer, group.rank()));
    });
}

TEST(Exchange, KeepsTheOrderOfEachPair) {
  on_first_ranks(test_communicator(), std::min(2, test_communicator().size()), [](Communicator& group) {
    const int peer = group.size() - 1 - group.rank();
    // Sizes on both sides of the eager limit, so that a short message could overtake a long message.
    const std::vector<std::int64_t> counts = {300'000, 3, 20'000, 0, 1, 300'000};
    std::vector<Values<double>> outgoing, incoming;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      outgoing.push_back(message_values(counts[i], group.rank(), peer, static_cast<unsigned>(i)));
      incoming.push_back(poisoned_values(counts[i]));
    }
    const auto transfer_range = [&](std::size_t begin, std::size_t end) {
      std::vector<Transfer> transfers;
      for (std::size_t i = begin; i < end; ++i) transfers.push_back(receive_from(peer, incoming[i]));
      for (std::size_t i = begin; i < end; ++i) transfers.push_back(send_to(peer, outgoing[i]));
      return transfers;
    };
    // Three groups under way at once.
    Pending first = group.start_exchange(transfer_range(0, 2), test_stream());
    Pending second = group.start_exchange(transfer_range(2, 5), test_stream());
    Pending third = group.start_exchange(transfer_range(5, 6), test_stream());
    third.wait(test_stream());
    second.wait(test_stream());
    first.wait(test_stream());
    for (std::size_t i = 0; i < counts.size(); ++i)
      EXPECT_EQ(incoming[i].read(), message(counts[i], peer, group.rank(), static_cast<unsigned>(i))) << i;
  });
}

TEST(Exchange, OneSideMayBeUngrouped) {
  if (test_communicator().size() < 2) GTEST_SKIP() << "needs 2 ranks";
  on_first_ranks(test_communicator(), 2, [](Communicator& group) {
    const int peer = 1 - group.rank();
    const auto outgoing = message_values(large / 8, group.rank(), peer);
    const auto incoming = poisoned_values(large / 8);
    const Transfer send = send_to(peer, outgoing), receive = receive_from(peer, incoming);
    if (group.rank() == 0) {
      group.exchange({&send, 1}, test_stream());
      group.exchange({&receive, 1}, test_stream());
    } else {
      const std::vector<Transfer> both = {send, receive};
      group.exchange(both, test_stream());
    }
    EXPECT_EQ(incoming.read(), message(large / 8, peer, group.rank()));
  });
}

TEST(Exchange, MovesHalvesAndBytes) {
  Communicator& world = test_communicator();
  const int next = (world.rank() + 1) % world.size(), previous = (world.rank() + world.size() - 1) % world.size();
  const Values<std::uint16_t> halves(random_values<std::uint16_t>(77, static_cast<unsigned>(world.rank())));
  const Values<std::uint8_t> bytes(random_values<std::uint8_t>(78, static_cast<unsigned>(world.rank())));
  const Values<std::uint16_t> to_halves(poisoned<std::uint16_t>(77));
  const Values<std::uint8_t> to_bytes(poisoned<std::uint8_t>(78));
  const auto half = [](const Values<std::uint16_t>& bits) {
    return Tensor(tensor_of(bits).data(), DType::bf16, {77}, tensor_of(bits).device());
  };
  const std::vector<Transfer> transfers = {{Transfer::Direction::send, next, half(halves)},
                                           send_to(next, bytes),
                                           {Transfer::Direction::receive, previous, half(to_halves)},
                                           receive_from(previous, to_bytes)};
  world.exchange(transfers, test_stream());
  EXPECT_EQ(to_halves.read(), random_values<std::uint16_t>(77, static_cast<unsigned>(previous)));
  EXPECT_EQ(to_bytes.read(), random_values<std::uint8_t>(78, static_cast<unsigned>(previous)));
}

// A message of another length is an error of the receiver, whichever is the longer; the communicator stays usable.
TEST(Exchange, RefusesAMessageOfAnotherLength) {
  if (test_communicator().size() < 2) GTEST_SKIP() << "needs 2 ranks";
  if (test_transport() == TestTransport::nccl) GTEST_SKIP() << "NCCL does not tell the receiver";
  on_first_ranks(test_communicator(), 2, [](Communicator& group) {
    for (const std::int64_t expected : {12, 20}) {
      const auto values = poisoned_values(group.rank() == 0 ? 16 : expected);
      if (group.rank() == 0) {
        const Transfer send = send_to(1, values);
        group.exchange({&send, 1}, test_stream());
      } else {
        const Transfer receive = receive_from(0, values);
        EXPECT_THROW(group.exchange({&receive, 1}, test_stream()), InternalError) << expected;
      }
    }
    EXPECT_EQ(group.all_reduce(std::int64_t{1}, ReduceOp::sum), 2);
  });
}

TEST(Exchange, RefusesLoneTransfersToItself) {
  Communicator& world = test_communicator();
  const auto values = poisoned_values(4);
  const Transfer send = send_to(world.rank(), values);
  EXPECT_THROW(world.exchange({&send, 1}, test_stream()), InternalError);
  const Transfer nowhere = send_to(world.size(), values);
  EXPECT_THROW(world.exchange({&nowhere, 1}, test_stream()), InternalError);
}

}  // namespace
}  // namespace fulmen
