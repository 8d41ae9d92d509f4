// Entering operations into the flight recorder.
#include "parallel/recording_communicator.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <utility>

namespace fulmen {
namespace {

using Clock = std::chrono::steady_clock;

class RecordedOperation final : public Pending::Operation {
 public:
  RecordedOperation(Pending inner, std::shared_ptr<FlightRing> ring, std::uint64_t sequence)
      : inner_(std::move(inner)), ring_(std::move(ring)), sequence_(sequence) {}

  void wait(Stream stream) override {
    ring_->waits(sequence_);
    try {
      inner_.wait(stream);
    } catch (...) {
      ring_->fails(sequence_);
      throw;
    }
    ring_->leave(sequence_, stream);
  }

 private:
  Pending inner_;
  std::shared_ptr<FlightRing> ring_;
  std::uint64_t sequence_;
};

class RecordingCommunicator final : public Communicator {
 public:
  using Communicator::all_reduce;

  RecordingCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<FlightRecorder> recorder, std::string name,
                        std::vector<int> ranks)
      : inner_(std::move(inner)), recorder_(std::move(recorder)), ranks_(std::move(ranks)) {
    ring_ = recorder_->add(std::move(name), ranks_, *inner_);
  }
  ~RecordingCommunicator() override { recorder_->remove(*ring_); }
  RecordingCommunicator(const RecordingCommunicator&) = delete;
  RecordingCommunicator& operator=(const RecordingCommunicator&) = delete;

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  void set_name(const std::string& name) override {
    ring_->set_name(name);
    inner_->set_name(name);
  }
  void report_to(Profiler* profiler) override { inner_->report_to(profiler); }

  void all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    run(reduction(FlightOperation::all_reduce, tensor, op), where(tensor, stream),
        [&] { inner_->all_reduce(tensor, op, stream); });
  }
  Pending start_all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    return start(reduction(FlightOperation::all_reduce, tensor, op),
                 [&] { return inner_->start_all_reduce(tensor, op, stream); });
  }

  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    run(reduction(FlightOperation::reduce_scatter, input, op), where(input, stream),
        [&] { inner_->reduce_scatter(input, output, op, stream); });
  }
  Pending start_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    return start(reduction(FlightOperation::reduce_scatter, input, op),
                 [&] { return inner_->start_reduce_scatter(input, output, op, stream); });
  }

  void all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    run(of_tensor(FlightOperation::all_gather, output), where(output, stream),
        [&] { inner_->all_gather(input, output, stream); });
  }
  Pending start_all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    return start(of_tensor(FlightOperation::all_gather, output),
                 [&] { return inner_->start_all_gather(input, output, stream); });
  }

  void broadcast(const Tensor& tensor, int root, Stream stream) override {
    FlightEntry entry = of_tensor(FlightOperation::broadcast, tensor);
    if (0 <= root && root < size()) entry.root = ranks_[static_cast<std::size_t>(root)];
    run(std::move(entry), where(tensor, stream), [&] { inner_->broadcast(tensor, root, stream); });
  }

  void exchange(std::span<const Transfer> transfers, Stream stream) override {
    run(of_transfers(transfers), transfers.empty() ? Stream{} : where(transfers.front().tensor, stream),
        [&] { inner_->exchange(transfers, stream); });
  }
  Pending start_exchange(std::span<const Transfer> transfers, Stream stream) override {
    return start(of_transfers(transfers), [&] { return inner_->start_exchange(transfers, stream); });
  }

  void barrier() override {
    FlightEntry entry;
    entry.operation = FlightOperation::barrier;
    run(std::move(entry), {}, [&] { inner_->barrier(); });
  }

  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    const auto begin = Clock::now();
    FlightEntry entry;
    entry.operation = FlightOperation::subgroup;
    std::unique_ptr<Communicator> made;
    run(std::move(entry), {}, [&] { made = inner_->subgroup(ranks); });
    std::vector<int> members;
    for (const int rank : ranks) members.push_back(ranks_[static_cast<std::size_t>(rank)]);
    auto recording =
        std::make_unique<RecordingCommunicator>(std::move(made), recorder_, "subgroup", std::move(members));
    recorder_->add_creation_seconds(std::chrono::duration<double>(Clock::now() - begin).count());
    return recording;
  }

  void connect(Connections connections) override {
    FlightEntry entry;
    entry.operation = FlightOperation::connect;
    run(std::move(entry), {}, [&] { inner_->connect(connections); });
  }
  void limit_multiprocessors(int count) override { inner_->limit_multiprocessors(count); }

  void cancel() override { inner_->cancel(); }
  void abort(int exit_code) override { inner_->abort(exit_code); }

 private:
  // The stream that an operation on this tensor is in; the CPU's when it is over as its call returns.
  static Stream where(const Tensor& tensor, Stream stream) {
    return tensor.device().kind == DeviceKind::cpu ? Stream{} : stream;
  }

  static FlightEntry of_tensor(FlightOperation operation, const Tensor& tensor) {
    FlightEntry entry;
    entry.operation = operation;
    entry.dtype = tensor.dtype();
    entry.bytes = tensor.bytes();
    return entry;
  }

  static FlightEntry reduction(FlightOperation operation, const Tensor& tensor, ReduceOp op) {
    FlightEntry entry = of_tensor(operation, tensor);
    entry.reduce = op;
    return entry;
  }

  FlightEntry of_transfers(std::span<const Transfer> transfers) const {
    FlightEntry entry;
    entry.operation = FlightOperation::exchange;
    if (!transfers.empty()) entry.dtype = transfers.front().tensor.dtype();
    for (const Transfer& transfer : transfers) {
      entry.bytes += transfer.tensor.bytes();
      if (0 <= transfer.peer && transfer.peer < size())
        entry.transfers.push_back({transfer.direction == Transfer::Direction::send,
                                   ranks_[static_cast<std::size_t>(transfer.peer)], transfer.tensor.bytes(), 0});
    }
    return entry;
  }

  template <class F>
  void run(FlightEntry entry, Stream stream, F&& operation) {
    const std::uint64_t sequence = ring_->enter(std::move(entry));
    try {
      operation();
    } catch (...) {
      ring_->fails(sequence);
      throw;
    }
    ring_->leave(sequence, stream);
  }

  template <class F>
  Pending start(FlightEntry entry, F&& operation) {
    const std::uint64_t sequence = ring_->enter(std::move(entry));
    Pending inner;
    try {
      inner = operation();
    } catch (...) {
      ring_->fails(sequence);
      throw;
    }
    if (inner.complete()) {
      ring_->leave(sequence, {});
      return {};
    }
    ring_->started(sequence);
    return Pending(std::make_unique<RecordedOperation>(std::move(inner), ring_, sequence));
  }

  std::unique_ptr<Communicator> inner_;
  std::shared_ptr<FlightRecorder> recorder_;
  std::vector<int> ranks_;
  std::shared_ptr<FlightRing> ring_;
};

}  // namespace

std::unique_ptr<Communicator> make_recording_communicator(std::unique_ptr<Communicator> inner,
                                                          std::shared_ptr<FlightRecorder> recorder, std::string name,
                                                          std::vector<int> ranks) {
  if (ranks.empty()) {
    ranks.resize(static_cast<std::size_t>(inner->size()));
    std::iota(ranks.begin(), ranks.end(), 0);
  }
  return std::make_unique<RecordingCommunicator>(std::move(inner), std::move(recorder), std::move(name),
                                                 std::move(ranks));
}

}  // namespace fulmen
