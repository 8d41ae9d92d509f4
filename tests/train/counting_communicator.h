// A communicator that counts what its operations are given to send, by kind, and hands the work to another. Its
// subgroups count too, each group of ranks for itself.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace fulmen {

// Bytes that this rank put into operations, by the kind of operation, for each group of ranks (of the counted world).
using CountedBytes = std::map<std::vector<int>, std::map<std::string, std::size_t>>;

class CountingCommunicator final : public Communicator {
 public:
  // `members`: the ranks of the counted world that `inner` joins.
  CountingCommunicator(std::unique_ptr<Communicator> inner, std::vector<int> members, CountedBytes& bytes)
      : inner_(std::move(inner)), members_(std::move(members)), bytes_(bytes) {}

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    count("all_reduce", tensor);
    inner_->all_reduce(tensor, op, stream);
  }
  Pending start_all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    count("all_reduce", tensor);
    return inner_->start_all_reduce(tensor, op, stream);
  }
  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    count("reduce_scatter", input);
    inner_->reduce_scatter(input, output, op, stream);
  }
  Pending start_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    count("reduce_scatter", input);
    return inner_->start_reduce_scatter(input, output, op, stream);
  }
  void all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    count("all_gather", input);
    inner_->all_gather(input, output, stream);
  }
  Pending start_all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    count("all_gather", input);
    return inner_->start_all_gather(input, output, stream);
  }
  void broadcast(const Tensor& tensor, int root, Stream stream) override {
    count("broadcast", tensor);
    inner_->broadcast(tensor, root, stream);
  }
  void exchange(std::span<const Transfer> transfers, Stream stream) override {
    count_sends(transfers);
    inner_->exchange(transfers, stream);
  }
  Pending start_exchange(std::span<const Transfer> transfers, Stream stream) override {
    count_sends(transfers);
    return inner_->start_exchange(transfers, stream);
  }
  void barrier() override { inner_->barrier(); }
  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    std::vector<int> members;
    for (const int rank : ranks) members.push_back(members_[static_cast<std::size_t>(rank)]);
    return std::make_unique<CountingCommunicator>(inner_->subgroup(ranks), members, bytes_);
  }
  void abort(int exit_code) override { inner_->abort(exit_code); }

 private:
  void count(const char* kind, const Tensor& tensor) { bytes_[members_][kind] += tensor.bytes(); }
  void count_sends(std::span<const Transfer> transfers) {
    for (const Transfer& transfer : transfers)
      if (transfer.direction == Transfer::Direction::send) count("send", transfer.tensor);
  }

  std::unique_ptr<Communicator> inner_;
  std::vector<int> members_;
  CountedBytes& bytes_;
};

}  // namespace fulmen
