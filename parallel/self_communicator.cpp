// The communicator of a single rank: one process, no launcher, no MPI.
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "parallel/communicator.h"
#include "parallel/transfer_checks.h"

namespace fulmen {
namespace {

class SelfCommunicator final : public Communicator {
 public:
  using Communicator::all_reduce;

  int rank() const override { return 0; }
  int size() const override { return 1; }

  void all_reduce(const Tensor& tensor, ReduceOp, Stream) override { check_operand(tensor, "all_reduce"); }
  Pending start_all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    all_reduce(tensor, op, stream);
    return {};
  }

  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp, Stream) override {
    check_reduce_scatter(input, output, 1);
    copy_bytes(input, output);
  }
  Pending start_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    reduce_scatter(input, output, op, stream);
    return {};
  }

  void all_gather(const Tensor& input, const Tensor& output, Stream) override {
    check_all_gather(input, output, 1);
    copy_bytes(input, output);
  }
  Pending start_all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    all_gather(input, output, stream);
    return {};
  }

  void broadcast(const Tensor& tensor, int root, Stream) override {
    check_operand(tensor, "broadcast");
    check_root(root, 1);
  }

  void exchange(std::span<const Transfer> transfers, Stream) override {
    check_transfers(transfers, 1);
    copy_to_self(transfers, 0);
  }
  Pending start_exchange(std::span<const Transfer> transfers, Stream stream) override {
    exchange(transfers, stream);
    return {};
  }

  void barrier() override {}

  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    FULMEN_CHECK(ranks == std::vector<int>{0}, "a subgroup of {} ranks out of one", ranks.size());
    return make_self_communicator();
  }

  void abort(int exit_code) override {
    std::cout.flush();
    std::fflush(nullptr);
    std::_Exit(exit_code);
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() { return std::make_unique<SelfCommunicator>(); }

}  // namespace fulmen
