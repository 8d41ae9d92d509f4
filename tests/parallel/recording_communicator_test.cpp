// The recording communicator passes everything on and enters it; the order that it keeps is compared between ranks.
#include "parallel/recording_communicator.h"

#include <gtest/gtest.h>

#include "parallel/collective_order.h"
#include "tests/parallel/host_tensor.h"
#include "tests/parallel/rank_groups.h"

namespace fulmen {
namespace {

std::unique_ptr<Communicator> all_ranks() { return test_world().subgroup(first_ranks(test_world().size())); }

TEST(Recording, EntersEveryOperationOfItselfAndItsSubgroups) {
  const int rank = test_world().rank(), ranks = test_world().size();
  const auto recorder = std::make_shared<FlightRecorder>(rank, ranks);
  const auto world = make_recording_communicator(all_ranks(), recorder, "world");
  std::vector<double> values(3, 1.0 + rank), parts(static_cast<std::size_t>(ranks), 2.0), part(1);
  world->all_reduce(tensor_of(values), ReduceOp::max, {});
  EXPECT_EQ(values, std::vector<double>(3, ranks));
  world->reduce_scatter(tensor_of(parts), tensor_of(part), ReduceOp::sum, {});
  EXPECT_EQ(part[0], 2.0 * ranks);
  part[0] = rank;
  world->start_all_gather(tensor_of(part), tensor_of(parts), {}).wait();
  EXPECT_EQ(parts.back(), ranks - 1.0);
  EXPECT_EQ(world->broadcast_text(rank == 1 ? "word" : "", 1), "word");
  world->barrier();
  const int next = (rank + 1) % ranks, before = (rank + ranks - 1) % ranks;
  std::vector<double> out(2, rank), in(2);
  const std::vector<Transfer> ring = {{Transfer::Direction::send, next, tensor_of(out)},
                                      {Transfer::Direction::receive, before, tensor_of(in)}};
  world->exchange(ring, {});
  EXPECT_EQ(in, std::vector<double>(2, before));

  // Pairs of the higher and the lower rank: members are named by their ranks in the job.
  const int base = rank / 2 * 2;
  if (base + 1 < ranks) {
    const auto pair = world->subgroup({base + 1, base});
    pair->set_name("pair");
    EXPECT_EQ(pair->all_reduce(std::int64_t{1}, ReduceOp::sum), 2);
    const FlightRing::Snapshot snapshot = recorder->rings().back()->snapshot();
    EXPECT_EQ(snapshot.name, "pair");
    EXPECT_EQ(snapshot.ranks, (std::vector{base + 1, base}));
    EXPECT_EQ(snapshot.collectives, 1u);
  }
  ASSERT_EQ(recorder->rings().size(), 1u) << "a communicator that is gone";
  const FlightRing::Snapshot snapshot = recorder->rings().front()->snapshot();
  std::vector<std::string> entered;
  for (const FlightEntry& entry : snapshot.entries) {
    EXPECT_EQ(entry.state, FlightState::done);
    EXPECT_LE(entry.entered, entry.completed);
    if (entry.operation != FlightOperation::subgroup)
      entered.push_back(fmt::format("{} {} {}", name_of(entry.operation), entry.collective, entry.bytes));
  }
  const auto parts_bytes = 8 * ranks;
  EXPECT_EQ(entered, (std::vector<std::string>{"all_reduce 1 24", fmt::format("reduce_scatter 2 {}", parts_bytes),
                                               fmt::format("all_gather 3 {}", parts_bytes), "broadcast 4 8",
                                               "broadcast 5 4", "barrier 6 0", "exchange 0 32"}));
  EXPECT_EQ(snapshot.sent.at(next), 1u);
  EXPECT_EQ(snapshot.received.at(before), 1u);
}

TEST(Recording, AnOperationThatThrowsHasFailed) {
  const auto recorder = std::make_shared<FlightRecorder>(0, 1);
  const auto self = make_recording_communicator(make_self_communicator(), recorder, "self");
  std::vector<float> three(3), two(2);
  EXPECT_THROW(self->all_gather(tensor_of(three), tensor_of(two), {}), InternalError);
  EXPECT_EQ(recorder->rings().front()->snapshot().entries.back().state, FlightState::failed);
  EXPECT_EQ(recorder->blocked_seconds(), 0.0);
}

FlightEntry entry_of(FlightOperation operation, std::uint64_t bytes, std::vector<FlightTransfer> transfers = {}) {
  FlightEntry entry;
  entry.operation = operation;
  entry.dtype = DType::fp32;
  entry.bytes = bytes;
  entry.transfers = std::move(transfers);
  return entry;
}

// Expects the same message on all ranks.
void expect_disagreement(FlightRecorder& recorder, const std::vector<std::string>& words) {
  try {
    check_collective_order(recorder, test_world());
    ADD_FAILURE() << "nothing was noticed";
  } catch (const InternalError& error) {
    const std::string message = error.what();
    for (const std::string& word : words)
      EXPECT_NE(message.find(word), std::string::npos) << word << " is not in: " << message;
  }
}

TEST(CollectiveOrder, TheSameOrderIsFine) {
  const int rank = test_world().rank(), ranks = test_world().size();
  const auto recorder = std::make_shared<FlightRecorder>(rank, ranks, true);
  const auto world = make_recording_communicator(all_ranks(), recorder, "world");
  for (int step = 0; step < 3; ++step) {
    for (int i = 0; i < 300; ++i) world->all_reduce(1.0, ReduceOp::sum);
    const auto pair = world->subgroup({rank});  // of which every rank has its own
    pair->barrier();
    std::vector<float> out(4), in(4);
    const std::vector<Transfer> ring = {{Transfer::Direction::send, (rank + 1) % ranks, tensor_of(out)},
                                        {Transfer::Direction::receive, (rank + ranks - 1) % ranks, tensor_of(in)}};
    world->exchange(ring, {});
    EXPECT_NO_THROW(check_collective_order(*recorder, test_world()));
  }
}

TEST(CollectiveOrder, NamesTheFirstOperationThatDiffers) {
  const int rank = test_world().rank(), ranks = test_world().size();
  if (ranks < 3) GTEST_SKIP() << "needs 3 ranks";
  FlightRecorder recorder(rank, ranks, true);
  const auto ring = recorder.add("data", first_ranks(ranks), test_world());
  for (int i = 0; i < 10; ++i) ring->enter(entry_of(FlightOperation::all_reduce, 64));
  check_collective_order(recorder, test_world());
  ring->enter(entry_of(FlightOperation::all_reduce, 64));
  ring->enter(entry_of(FlightOperation::all_gather, rank == 2 ? 128 : 256));
  ring->enter(entry_of(FlightOperation::barrier, 0));
  expect_disagreement(recorder, {"\"data\"", "from number 12 on", "rank 0: all_gather of 256 bytes, fp32",
                                 "rank 2: all_gather of 128 bytes"});
}

TEST(CollectiveOrder, NoticesOneOperationMoreAndSwappedOnes) {
  const int rank = test_world().rank(), ranks = test_world().size();
  if (ranks < 2) GTEST_SKIP() << "needs 2 ranks";
  {
    FlightRecorder recorder(rank, ranks, true);
    const auto ring = recorder.add("data", first_ranks(ranks), test_world());
    ring->enter(entry_of(FlightOperation::all_reduce, 64));
    if (rank == 1) ring->enter(entry_of(FlightOperation::all_reduce, 64));
    expect_disagreement(recorder, {"from number 2 on", "rank 0: nothing", "rank 1: all_reduce of 64 bytes"});
  }
  FlightRecorder recorder(rank, ranks, true);
  const auto ring = recorder.add("data", first_ranks(ranks), test_world());
  for (const std::uint64_t bytes : rank == 0 ? std::vector<std::uint64_t>{64, 32} : std::vector<std::uint64_t>{32, 64})
    ring->enter(entry_of(FlightOperation::all_reduce, bytes));
  expect_disagreement(recorder, {"from number 1 on", "rank 0: all_reduce of 64", "rank 1: all_reduce of 32"});
}

TEST(CollectiveOrder, ComparesSendersWithReceivers) {
  const int rank = test_world().rank(), ranks = test_world().size();
  if (ranks < 2) GTEST_SKIP() << "needs 2 ranks";
  FlightRecorder recorder(rank, ranks, true);
  const auto ring = recorder.add("pipeline", first_ranks(ranks), test_world());
  if (rank == 0) ring->enter(entry_of(FlightOperation::exchange, 40, {{true, 1, 40, 0}}));
  if (rank == 1) ring->enter(entry_of(FlightOperation::exchange, 44, {{false, 0, 44, 0}}));
  expect_disagreement(recorder, {"transfers from rank 0 to rank 1", "rank 0: a transfer of 40 bytes",
                                 "rank 1: a transfer of 44 bytes"});
}

}  // namespace
}  // namespace fulmen
