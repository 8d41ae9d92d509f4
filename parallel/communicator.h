// Communication of ranks, behind one interface that promises what the weakest transport keeps. That is: no tags, order
// kept per pair, a stream argument, grouped sends and receives.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "framework/tensor.h"

namespace fulmen {

class Profiler;

enum class ReduceOp : std::uint8_t { sum, max, min };

// The operations that a group is connected for; each includes the previous entries.
enum class Connections : std::uint8_t {
  plain,      // plain collectives
  started,    // started operations, which overlap with the caller's kernels
  exchanges,  // exchanges with the ranks before and after
};

// A started operation. wait() makes the stream wait for it (on the CPU: the caller). Destroying one waits, except while
// an exception unwinds: then the job ends, and the other ranks may never come.
class Pending {
 public:
  struct Operation {
    virtual ~Operation() = default;
    virtual void wait(Stream stream) = 0;
  };
  Pending() = default;  // already complete
  explicit Pending(std::unique_ptr<Operation> operation) : operation_(std::move(operation)) {}
  Pending(Pending&&) noexcept = default;
  Pending& operator=(Pending&& other);
  ~Pending();
  void wait(Stream stream = {});
  bool complete() const { return operation_ == nullptr; }

 private:
  std::unique_ptr<Operation> operation_;
};

// One side of a point-to-point transfer, in a group that proceeds together.
struct Transfer {
  enum class Direction : std::uint8_t { send, receive };
  Direction direction;
  int peer;       // rank in this communicator
  Tensor tensor;  // contiguous
};

// A group of ranks. Every rank calls the same collectives in the same order. Tensors are contiguous; counts above 2^31
// are cut into pieces. A plain call is complete, in stream order, when it returns. A start_ call returns a Pending, and
// its tensors must stay untouched until that was waited for. Exchanges have an order of their own for each pair of
// ranks. On device tensors they stand in one order with the started collectives of the group.
class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // In place. Over floating types, max and min need not notice a NaN.
  virtual void all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) = 0;
  [[nodiscard]] virtual Pending start_all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) = 0;
  // input holds size() equal parts; output, one part, is their sum (or max, min) for this rank. On all ranks or on
  // none, output may be this rank's own part of input.
  virtual void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) = 0;
  [[nodiscard]] virtual Pending start_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op,
                                                     Stream stream) = 0;
  // output holds size() parts of input's size, in rank order. On all ranks or on none, input may be this rank's own
  // part of output.
  virtual void all_gather(const Tensor& input, const Tensor& output, Stream stream) = 0;
  [[nodiscard]] virtual Pending start_all_gather(const Tensor& input, const Tensor& output, Stream stream) = 0;
  virtual void broadcast(const Tensor& tensor, int root, Stream stream) = 0;
  // Sends and receives that proceed together, so that two ranks may exchange without a deadlock. A rank may be its own
  // peer; its sends to itself then go to its receives from itself in order, within one call.
  virtual void exchange(std::span<const Transfer> transfers, Stream stream) = 0;
  [[nodiscard]] virtual Pending start_exchange(std::span<const Transfer> transfers, Stream stream) = 0;
  virtual void barrier() = 0;

  // A communicator of some ranks of this communicator, in the order given (its rank i is ranks[i]). Collective over
  // these ranks only, the caller among them.
  virtual std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) = 0;

  // Makes the connections that operations on device tensors need. Collective. Without it the first operation, or the
  // first exchange, makes them. That waits on the host for all ranks of the group, and on a GPU for the kernels under
  // way. It must not happen when these kernels may wait for other ranks.
  virtual void connect(Connections connections) { (void)connections; }

  // How many multiprocessors of a GPU its operations may take from concurrent kernels. To be called before the first
  // operation and before connect(). 0, as without: as many as the transport finds best.
  virtual void limit_multiprocessors(int count) { (void)count; }

  // Its name in the flight recorder and the profiler: "tensor", "data x sequence".
  virtual void set_name(const std::string&) {}

  // Enters started operations that run on a stream of their own into a profiler, with all subgroups; null ends
  // it. A transport without such streams enters nothing: its time is the caller's.
  virtual void report_to(Profiler*) {}

  // Ends the kernels that wait on a GPU for other ranks, so that this process can end. Nothing works on this
  // communicator afterwards. Waits without a kernel, for copies between GPUs, go on until the process ends. Unlike all
  // else, cancel() and abort() may be called from another thread while an operation is under way.
  virtual void cancel() {}
  // Ends the job at once, on all ranks, with this exit code. Does not return.
  [[noreturn]] virtual void abort(int exit_code) = 0;

  // Conveniences on host values.
  double all_reduce(double value, ReduceOp op);
  std::int64_t all_reduce(std::int64_t value, ReduceOp op);
  virtual std::string broadcast_text(const std::string& text, int root);
};

// One rank, no launcher, no MPI.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace fulmen
