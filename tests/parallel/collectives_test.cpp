// Collectives against results computed by each rank alone: over MPI, or on GPU tensors (test_communicator.h).
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/parallel/rank_groups.h"
#include "tests/parallel/test_communicator.h"

namespace fulmen {
namespace {

constexpr ReduceOp reductions[] = {ReduceOp::sum, ReduceOp::max, ReduceOp::min};
constexpr std::int64_t sizes[] = {0, 1, 7, 1003};

template <class T>
T combine(T a, T b, ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return static_cast<T>(a + b);
    case ReduceOp::max: return std::max(a, b);
    case ReduceOp::min: return std::min(a, b);
  }
  return a;
}

// The contribution of rank `rank` in the round named by `seed`.
template <class T>
std::vector<Number<T>> contribution(std::int64_t count, unsigned seed, int rank) {
  return random_values<Number<T>>(count, 1000 * seed + static_cast<unsigned>(rank));
}

template <class T>
std::vector<Number<T>> reduced(std::int64_t count, unsigned seed, int ranks, ReduceOp op) {
  std::vector<Number<T>> result = contribution<T>(count, seed, 0);
  for (int rank = 1; rank < ranks; ++rank) {
    const std::vector<Number<T>> other = contribution<T>(count, seed, rank);
    for (std::size_t i = 0; i < result.size(); ++i) result[i] = combine(result[i], other[i], op);
  }
  return result;
}

template <class T>
std::vector<T> part(const std::vector<T>& whole, int parts, int index) {
  const auto length = static_cast<std::ptrdiff_t>(whole.size()) / parts;
  return {whole.begin() + index * length, whole.begin() + (index + 1) * length};
}

template <class T>
Values<T> contributed(std::int64_t count, unsigned seed, int rank) {
  return Values<T>(contribution<T>(count, seed, rank));
}

template <class T>
Values<T> poisoned_values(std::int64_t count) {
  return Values<T>(poisoned<Number<T>>(count));
}

template <class T>
void check_all_reduce(Communicator& group, std::int64_t count, ReduceOp op, bool started) {
  const auto values = contributed<T>(count, 1, group.rank());
  if (started)
    group.start_all_reduce(tensor_of(values), op, test_stream()).wait(test_stream());
  else
    group.all_reduce(tensor_of(values), op, test_stream());
  EXPECT_EQ(values.read(), reduced<T>(count, 1, group.size(), op));
}

template <class T>
void check_reduce_scatter(Communicator& group, std::int64_t count, ReduceOp op, bool started, bool in_place) {
  const std::int64_t total = count * group.size();
  const auto input = contributed<T>(total, 2, group.rank());
  const auto separate = poisoned_values<T>(count);
  const Tensor output =
      in_place ? tensor_of(input).slice(0, group.rank() * count, (group.rank() + 1) * count) : tensor_of(separate);
  if (started)
    group.start_reduce_scatter(tensor_of(input), output, op, test_stream()).wait(test_stream());
  else
    group.reduce_scatter(tensor_of(input), output, op, test_stream());
  const auto result = in_place ? part(input.read(), group.size(), group.rank()) : separate.read();
  EXPECT_EQ(result, part(reduced<T>(total, 2, group.size(), op), group.size(), group.rank()));
  if (in_place) return;
  EXPECT_EQ(input.read(), contribution<T>(total, 2, group.rank()));
}

template <class T>
void check_all_gather(Communicator& group, std::int64_t count, bool started, bool in_place) {
  const auto own = contributed<T>(count, 3, group.rank());
  auto before = poisoned<Number<T>>(count * group.size());
  if (in_place) {
    const auto numbers = contribution<T>(count, 3, group.rank());
    std::copy(numbers.begin(), numbers.end(), before.begin() + group.rank() * count);
  }
  const Values<T> output(before);
  const Tensor input =
      in_place ? tensor_of(output).slice(0, group.rank() * count, (group.rank() + 1) * count) : tensor_of(own);
  if (started)
    group.start_all_gather(input, tensor_of(output), test_stream()).wait(test_stream());
  else
    group.all_gather(input, tensor_of(output), test_stream());
  const auto gathered = output.read();
  for (int rank = 0; rank < group.size(); ++rank)
    EXPECT_EQ(part(gathered, group.size(), rank), contribution<T>(count, 3, rank));
}

template <class T>
void check_broadcast(Communicator& group, std::int64_t count) {
  for (int root = 0; root < group.size(); ++root) {
    const auto values = group.rank() == root ? contributed<T>(count, 4, root) : poisoned_values<T>(count);
    group.broadcast(tensor_of(values), root, test_stream());
    EXPECT_EQ(values.read(), contribution<T>(count, 4, root));
  }
}

template <class T>
void check_reductions_are_refused(Communicator& group) {
  const auto whole = contributed<T>(group.size(), 1, group.rank());
  const Tensor all = tensor_of(whole), one = all.slice(0, group.rank(), group.rank() + 1);
  EXPECT_THROW(group.all_reduce(all, ReduceOp::sum, test_stream()), InternalError);
  EXPECT_THROW((void)group.start_all_reduce(all, ReduceOp::sum, test_stream()), InternalError);
  EXPECT_THROW(group.reduce_scatter(all, one, ReduceOp::sum, test_stream()), InternalError);
  EXPECT_THROW((void)group.start_reduce_scatter(all, one, ReduceOp::sum, test_stream()), InternalError);
}

template <class T>
void check_all_collectives(Communicator& group, std::int64_t count) {
  SCOPED_TRACE(fmt::format("{} elements of {}", count, name_of(dtype_of<T>)));
  for (const bool started : {false, true}) {
    if (test_reduces(dtype_of<T>))
      for (const ReduceOp op : reductions) {
        check_all_reduce<T>(group, count, op, started);
        for (const bool in_place : {false, true}) check_reduce_scatter<T>(group, count, op, started, in_place);
      }
    for (const bool in_place : {false, true}) check_all_gather<T>(group, count, started, in_place);
  }
  if (!test_reduces(dtype_of<T>)) check_reductions_are_refused<T>(group);
  check_broadcast<T>(group, count);
}

template <class T>
class Collectives : public testing::Test {};
using ElementTypes = testing::Types<double, float, BFloat16, std::int64_t, std::int32_t, std::uint64_t, std::uint32_t,
                                    std::uint16_t, std::uint8_t>;
TYPED_TEST_SUITE(Collectives, ElementTypes);

TYPED_TEST(Collectives, EqualTheSerialResult) {
  Communicator& world = test_communicator();
  for (int ranks = 1; ranks <= world.size(); ++ranks) {
    if (!std::is_same_v<TypeParam, double> && ranks != 3 && ranks != world.size()) continue;
    on_first_ranks(world, ranks, [](Communicator& group) {
      for (const std::int64_t count : sizes) check_all_collectives<TypeParam>(group, count);
    });
  }
}

// MPI counts are ints; what lies above is cut. Here the cut is after 7 elements.
TYPED_TEST(Collectives, EqualTheSerialResultInPieces) {
  if (test_transport() == TestTransport::nccl) GTEST_SKIP() << "NCCL cuts nothing: its counts have 64 bits";
  const auto world = test_communicator_in_pieces(7);
  for (const int ranks : {1, 3, 8})
    on_first_ranks(*world, std::min(ranks, world->size()), [](Communicator& group) {
      for (const std::int64_t count : {1, 7, 8, 50}) check_all_collectives<TypeParam>(group, count);
    });
}

TEST(CollectivesOfReals, AreTheSameBitsOnAllRanksAndInEveryRun) {
  on_each_count_of_ranks(test_communicator(), [](Communicator& group) {
    std::mt19937 generator(static_cast<unsigned>(group.rank()));
    std::normal_distribution<double> normal;
    std::vector<double> original(100'003);
    for (double& value : original) value = normal(generator);
    for (const bool started : {false, true}) {
      const auto reduce = [&] {
        const Values<double> values(original);
        if (started)
          group.start_all_reduce(tensor_of(values), ReduceOp::sum, test_stream()).wait(test_stream());
        else
          group.all_reduce(tensor_of(values), ReduceOp::sum, test_stream());
        return values.read();
      };
      const std::vector<double> once = reduce(), again = reduce();
      const Values<double> broadcast(once);
      group.broadcast(tensor_of(broadcast), 0, test_stream());
      const std::vector<double> of_rank_0 = broadcast.read();
      EXPECT_EQ(std::memcmp(once.data(), again.data(), once.size() * sizeof(double)), 0);
      EXPECT_EQ(std::memcmp(once.data(), of_rank_0.data(), once.size() * sizeof(double)), 0);
    }
  });
}

TEST(CollectivesOfHalves, MoveAsTheyAre) {
  Communicator& world = test_communicator();
  for (const DType dtype : {DType::bf16, DType::fp16}) {
    const auto half = [&](const Values<std::uint16_t>& bits) {
      const Tensor tensor = tensor_of(bits);
      return Tensor(tensor.data(), dtype, tensor.shape(), tensor.device());
    };
    const auto own = contributed<std::uint16_t>(100, 5, world.rank());
    const auto gathered = poisoned_values<std::uint16_t>(100 * world.size());
    world.all_gather(half(own), half(gathered), test_stream());
    const auto parts = gathered.read();
    for (int rank = 0; rank < world.size(); ++rank)
      EXPECT_EQ(part(parts, world.size(), rank), contribution<std::uint16_t>(100, 5, rank));
    world.broadcast(half(own), world.size() - 1, test_stream());
    EXPECT_EQ(own.read(), contribution<std::uint16_t>(100, 5, world.size() - 1));
    if (test_reduces(dtype)) continue;
    EXPECT_THROW(world.all_reduce(half(own), ReduceOp::sum, test_stream()), InternalError);
    EXPECT_THROW((void)world.start_all_reduce(half(own), ReduceOp::sum, test_stream()), InternalError);
    EXPECT_THROW(world.reduce_scatter(half(gathered), half(own), ReduceOp::sum, test_stream()), InternalError);
  }
}

TEST(StartedCollectives, OverlapAndAreWaitedForInAnyOrder) {
  for (const std::int64_t largest_count : {std::int64_t{1000}, std::int64_t{1} << 28}) {
    const auto world = test_communicator_in_pieces(largest_count);
    on_each_count_of_ranks(*world, [](Communicator& group) {
      const auto other = group.subgroup(first_ranks(group.size()));
      const std::int64_t count = 20'011;
      const auto first = contributed<float>(count, 6, group.rank());
      const auto second = contributed<double>(count, 7, group.rank());
      const auto elsewhere = contributed<double>(count, 8, group.rank());
      const auto scattered_from = contributed<float>(count * group.size(), 9, group.rank());
      const auto scattered = poisoned_values<float>(count);
      const auto gathered_from = contributed<float>(count, 10, group.rank());
      const auto gathered = poisoned_values<float>(count * group.size());
      Pending a = group.start_all_reduce(tensor_of(first), ReduceOp::sum, test_stream());
      Pending b = group.start_all_reduce(tensor_of(second), ReduceOp::max, test_stream());
      Pending c = other->start_all_reduce(tensor_of(elsewhere), ReduceOp::sum, test_stream());
      Pending d =
          group.start_reduce_scatter(tensor_of(scattered_from), tensor_of(scattered), ReduceOp::sum, test_stream());
      Pending e = group.start_all_gather(tensor_of(gathered_from), tensor_of(gathered), test_stream());
      // A plain call may come while others are under way.
      EXPECT_EQ(group.all_reduce(std::int64_t{1}, ReduceOp::sum), group.size());
      if (group.rank() % 2 == 0) {
        e.wait(test_stream());
        b.wait(test_stream());
      } else {
        b.wait(test_stream());
        d.wait(test_stream());
      }
      a.wait(test_stream());
      c.wait(test_stream());
      d.wait(test_stream());
      e.wait(test_stream());
      EXPECT_EQ(first.read(), reduced<float>(count, 6, group.size(), ReduceOp::sum));
      EXPECT_EQ(second.read(), reduced<double>(count, 7, group.size(), ReduceOp::max));
      EXPECT_EQ(elsewhere.read(), reduced<double>(count, 8, group.size(), ReduceOp::sum));
      EXPECT_EQ(scattered.read(),
                part(reduced<float>(count * group.size(), 9, group.size(), ReduceOp::sum), group.size(), group.rank()));
      const auto parts = gathered.read();
      for (int rank = 0; rank < group.size(); ++rank)
        EXPECT_EQ(part(parts, group.size(), rank), contribution<float>(count, 10, rank));
    });
  }
}

TEST(HostValues, AreReducedAndBroadcast) {
  on_each_count_of_ranks(test_communicator(), [](Communicator& group) {
    const int ranks = group.size();
    EXPECT_EQ(group.all_reduce(group.rank() + 0.5, ReduceOp::sum), ranks * (ranks - 1) / 2 + 0.5 * ranks);
    EXPECT_EQ(group.all_reduce(std::int64_t{group.rank()}, ReduceOp::max), ranks - 1);
    const std::int64_t large = (std::int64_t{1} << 60) + group.rank();
    EXPECT_EQ(group.all_reduce(large, ReduceOp::min), std::int64_t{1} << 60);  // no double would hold it
    for (int root = 0; root < ranks; ++root) {
      const std::string own = fmt::format("told by rank {}{}", group.rank(), std::string(100, '.'));
      EXPECT_EQ(group.broadcast_text(own, root), fmt::format("told by rank {}{}", root, std::string(100, '.')));
      EXPECT_EQ(group.broadcast_text(group.rank() == root ? "" : "ignored", root), "");
      EXPECT_EQ(group.broadcast_text(std::string("a\0b", 3), root), std::string("a\0b", 3));
    }
    group.barrier();
  });
}

TEST(Subgroups, KeepTheOrderGivenAndConcernTheirMembersOnly) {
  Communicator& world = test_communicator();
  if (world.size() < 8) GTEST_SKIP() << "needs 8 ranks";
  const std::vector<std::vector<int>> groups = {{5, 2, 7, 0}, {6, 1}, {3}, {7, 6, 5, 4, 3, 2, 1, 0}, {4, 3, 1}};
  for (const std::vector<int>& ranks : groups) {
    const auto self = std::find(ranks.begin(), ranks.end(), world.rank());
    if (self == ranks.end()) continue;  // and makes no call at all
    const auto group = world.subgroup(ranks);
    EXPECT_EQ(group->rank(), self - ranks.begin());
    EXPECT_EQ(group->size(), static_cast<int>(ranks.size()));
    const Values<std::int32_t> own({world.rank()});
    const auto members = poisoned_values<std::int32_t>(group->size());
    group->all_gather(tensor_of(own), tensor_of(members), test_stream());
    EXPECT_EQ(members.read(), ranks);
    // A subgroup's subgroup speaks of the subgroup's ranks.
    if (group->size() < 3 || (group->rank() != 0 && group->rank() != group->size() - 1)) continue;
    const auto ends = group->subgroup({group->size() - 1, 0});
    EXPECT_EQ(ends->rank(), group->rank() == 0 ? 1 : 0);
    EXPECT_EQ(ends->all_reduce(std::int64_t{world.rank()}, ReduceOp::sum), ranks.front() + ranks.back());
  }
}

TEST(Subgroups, RefuseWhatIsNoGroupOfTheCaller) {
  Communicator& world = test_communicator();
  EXPECT_THROW(world.subgroup({}), InternalError);
  EXPECT_THROW(world.subgroup({world.rank(), world.rank()}), InternalError);
  EXPECT_THROW(world.subgroup({world.rank(), world.size()}), InternalError);
  EXPECT_THROW(world.subgroup({world.rank(), -1}), InternalError);
  if (world.size() == 1) return;
  EXPECT_THROW(world.subgroup({(world.rank() + 1) % world.size()}), InternalError);
}

TEST(CollectiveArguments, RefuseWhatDoesNotFit) {
  Communicator& world = test_communicator();
  const auto values = poisoned_values<float>(world.size() * 3 + 1), three = poisoned_values<float>(3);
  EXPECT_THROW(world.all_gather(tensor_of(three), tensor_of(values), test_stream()), InternalError);
  EXPECT_THROW(world.reduce_scatter(tensor_of(values), tensor_of(three), ReduceOp::sum, test_stream()), InternalError);
  EXPECT_THROW(world.broadcast(tensor_of(three), world.size(), test_stream()), InternalError);
  EXPECT_THROW(test_session().world(0), InternalError);
  EXPECT_THROW(MpiSession(), InternalError);
}

}  // namespace
}  // namespace fulmen
