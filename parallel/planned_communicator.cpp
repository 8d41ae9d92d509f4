// A communicator that communicates nothing.
#include "parallel/planned_communicator.h"

#include <algorithm>
#include <cstdlib>

#include "framework/error.h"

namespace fulmen {
namespace {

class PlannedCommunicator final : public Communicator {
 public:
  PlannedCommunicator(int rank, int size) : rank_(rank), size_(size) {
    FULMEN_CHECK(0 <= rank && rank < size, "rank {} of {}", rank, size);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce(const Tensor&, ReduceOp, Stream) override {}
  Pending start_all_reduce(const Tensor&, ReduceOp, Stream) override { return {}; }
  void reduce_scatter(const Tensor&, const Tensor&, ReduceOp, Stream) override {}
  Pending start_reduce_scatter(const Tensor&, const Tensor&, ReduceOp, Stream) override { return {}; }
  void all_gather(const Tensor&, const Tensor&, Stream) override {}
  Pending start_all_gather(const Tensor&, const Tensor&, Stream) override { return {}; }
  void broadcast(const Tensor&, int, Stream) override {}
  std::string broadcast_text(const std::string& text, int) override { return text; }
  void exchange(std::span<const Transfer>, Stream) override {}
  Pending start_exchange(std::span<const Transfer>, Stream) override { return {}; }
  void barrier() override {}

  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    const auto own = std::ranges::find(ranks, rank_);
    FULMEN_CHECK(own != ranks.end(), "rank {} is not in its own subgroup", rank_);
    return make_planned_communicator(static_cast<int>(own - ranks.begin()), static_cast<int>(ranks.size()));
  }

  void abort(int exit_code) override { std::_Exit(exit_code); }

 private:
  int rank_, size_;
};

}  // namespace

std::unique_ptr<Communicator> make_planned_communicator(int rank, int size) {
  return std::make_unique<PlannedCommunicator>(rank, size);
}

}  // namespace fulmen
