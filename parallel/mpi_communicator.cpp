// Communicators and the session over MPI 3.1.
#include "parallel/mpi_communicator.h"

#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <limits>

#include "parallel/transfer_checks.h"

namespace fulmen {
namespace {

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return fmt::format("error {}", code);
  return std::string(text, static_cast<std::size_t>(length));
}

void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) [[likely]]
    return;
  throw InternalError(fmt::format("{} failed: {}", call, error_text(code)));
}

// bf16 and fp16 travel as 16-bit words: MPI 3.1 knows neither.
MPI_Datatype transport_type(DType dtype) {
  switch (dtype) {
    case DType::fp64: return MPI_DOUBLE;
    case DType::fp32: return MPI_FLOAT;
    case DType::bf16:
    case DType::fp16:
    case DType::uint16: return MPI_UINT16_T;
    case DType::int64: return MPI_INT64_T;
    case DType::int32: return MPI_INT32_T;
    case DType::uint64: return MPI_UINT64_T;
    case DType::uint32: return MPI_UINT32_T;
    case DType::uint8: return MPI_UINT8_T;
  }
  throw InternalError(fmt::format("no MPI type for {}", name_of(dtype)));
}

MPI_Datatype arithmetic_type(DType dtype) {
  FULMEN_CHECK(dtype != DType::bf16 && dtype != DType::fp16, "MPI cannot reduce {}: reduce it in fp32", name_of(dtype));
  return transport_type(dtype);
}

MPI_Op mpi_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return MPI_SUM;
    case ReduceOp::max: return MPI_MAX;
    case ReduceOp::min: return MPI_MIN;
  }
  throw InternalError("unknown reduction");
}

// The requests of one started call, and what its receives must bring.
class MpiOperation final : public Pending::Operation {
 public:
  explicit MpiOperation(const char* call) : call_(call) {}

  bool empty() const { return requests_.empty(); }

  MPI_Request* add() {
    receives_.push_back({});
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  MPI_Request* add_receive(int peer, MPI_Datatype type, int count) {
    receives_.push_back({peer, type, count});
    return &requests_.emplace_back(MPI_REQUEST_NULL);
  }

  void wait(Stream) override {
    // One by one: OpenMPI 4.1's MPI_Waitall may hang when a message is longer than its receive.
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      MPI_Status status;
      check_mpi(MPI_Wait(&requests_[i], &status), call_);
      check_received(receives_[i], status);
    }
  }

 private:
  struct Receive {
    int peer = -1;  // -1: not a receive
    MPI_Datatype type = MPI_DATATYPE_NULL;
    int count = 0;
  };

  static void check_received(const Receive& receive, const MPI_Status& status) {
    if (receive.peer < 0) return;
    int count = 0;
    check_mpi(MPI_Get_count(&status, receive.type, &count), "MPI_Get_count");
    FULMEN_CHECK(count == receive.count, "rank {} sent {} elements where {} were expected", receive.peer, count,
                 receive.count);
  }

  const char* call_;
  std::vector<MPI_Request> requests_;
  std::vector<Receive> receives_;
};

Pending pending(std::unique_ptr<MpiOperation> operation) {
  return operation->empty() ? Pending() : Pending(std::move(operation));
}

class MpiCommunicator final : public Communicator {
 public:
  using Communicator::all_reduce;

  // Owns `comm`.
  MpiCommunicator(MPI_Comm comm, std::int64_t largest_count) : comm_(comm), largest_count_(largest_count) {
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }

  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    // Freeing is collective: while an exception unwinds, the other ranks may never come.
    if (finalized || std::uncaught_exceptions() > 0) return;
    const int code = MPI_Comm_free(&comm_);
    if (code != MPI_SUCCESS) std::fprintf(stderr, "MPI_Comm_free failed: %s\n", error_text(code).c_str());
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void all_reduce(const Tensor& tensor, ReduceOp op, Stream) override {
    check_operand(tensor, "all_reduce");
    const MPI_Datatype type = arithmetic_type(tensor.dtype());
    in_pieces(tensor, 0, tensor.elements(), [&](char* data, int count) {
      check_mpi(MPI_Allreduce(MPI_IN_PLACE, data, count, type, mpi_op(op), comm_), "MPI_Allreduce");
    });
  }

  Pending start_all_reduce(const Tensor& tensor, ReduceOp op, Stream) override {
    check_operand(tensor, "all_reduce");
    const MPI_Datatype type = arithmetic_type(tensor.dtype());
    auto operation = std::make_unique<MpiOperation>("MPI_Iallreduce");
    in_pieces(tensor, 0, tensor.elements(), [&](char* data, int count) {
      check_mpi(MPI_Iallreduce(MPI_IN_PLACE, data, count, type, mpi_op(op), comm_, operation->add()), "MPI_Iallreduce");
    });
    return pending(std::move(operation));
  }

  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream) override {
    check_reduce_scatter(input, output, size_);
    const MPI_Datatype type = arithmetic_type(input.dtype());
    if (output.elements() == 0) return;
    if (!scatters_part_by_part(input, output)) {
      check_mpi(MPI_Reduce_scatter_block(input.data(), output.data(), static_cast<int>(output.elements()), type,
                                         mpi_op(op), comm_),
                "MPI_Reduce_scatter_block");
      return;
    }
    for_each_reduced_piece(input, output, [&](const void* from, void* to, int count, int root) {
      check_mpi(MPI_Reduce(from, to, count, type, mpi_op(op), root, comm_), "MPI_Reduce");
    });
  }

  Pending start_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream) override {
    check_reduce_scatter(input, output, size_);
    const MPI_Datatype type = arithmetic_type(input.dtype());
    if (output.elements() == 0) return {};
    if (!scatters_part_by_part(input, output)) {
      auto operation = std::make_unique<MpiOperation>("MPI_Ireduce_scatter_block");
      check_mpi(MPI_Ireduce_scatter_block(input.data(), output.data(), static_cast<int>(output.elements()), type,
                                          mpi_op(op), comm_, operation->add()),
                "MPI_Ireduce_scatter_block");
      return pending(std::move(operation));
    }
    auto operation = std::make_unique<MpiOperation>("MPI_Ireduce");
    for_each_reduced_piece(input, output, [&](const void* from, void* to, int count, int root) {
      check_mpi(MPI_Ireduce(from, to, count, type, mpi_op(op), root, comm_, operation->add()), "MPI_Ireduce");
    });
    return pending(std::move(operation));
  }

  void all_gather(const Tensor& input, const Tensor& output, Stream) override {
    check_all_gather(input, output, size_);
    const MPI_Datatype type = transport_type(input.dtype());
    if (input.elements() == 0) return;
    if (output.elements() <= largest_count_) {
      const auto count = static_cast<int>(input.elements());
      check_mpi(MPI_Allgather(gathered_from(input, output), count, type, output.data(), count, type, comm_),
                "MPI_Allgather");
      return;
    }
    copy_own_part(input, output);
    for (int root = 0; root < size_; ++root)
      in_pieces(output, root * input.elements(), input.elements(),
                [&](char* data, int count) { check_mpi(MPI_Bcast(data, count, type, root, comm_), "MPI_Bcast"); });
  }

  Pending start_all_gather(const Tensor& input, const Tensor& output, Stream) override {
    check_all_gather(input, output, size_);
    const MPI_Datatype type = transport_type(input.dtype());
    if (input.elements() == 0) return {};
    if (output.elements() <= largest_count_) {
      const auto count = static_cast<int>(input.elements());
      auto operation = std::make_unique<MpiOperation>("MPI_Iallgather");
      check_mpi(MPI_Iallgather(gathered_from(input, output), count, type, output.data(), count, type, comm_,
                               operation->add()),
                "MPI_Iallgather");
      return pending(std::move(operation));
    }
    auto operation = std::make_unique<MpiOperation>("MPI_Ibcast");
    copy_own_part(input, output);
    for (int root = 0; root < size_; ++root)
      in_pieces(output, root * input.elements(), input.elements(), [&](char* data, int count) {
        check_mpi(MPI_Ibcast(data, count, type, root, comm_, operation->add()), "MPI_Ibcast");
      });
    return pending(std::move(operation));
  }

  void broadcast(const Tensor& tensor, int root, Stream) override {
    check_operand(tensor, "broadcast");
    check_root(root, size_);
    const MPI_Datatype type = transport_type(tensor.dtype());
    in_pieces(tensor, 0, tensor.elements(),
              [&](char* data, int count) { check_mpi(MPI_Bcast(data, count, type, root, comm_), "MPI_Bcast"); });
  }

  void exchange(std::span<const Transfer> transfers, Stream stream) override {
    start_exchange(transfers, stream).wait(stream);
  }

  Pending start_exchange(std::span<const Transfer> transfers, Stream) override {
    check_transfers(transfers, size_);
    copy_to_self(transfers, rank_);
    auto operation = std::make_unique<MpiOperation>("MPI_Wait of an exchange");
    // Receives first: a message that finds its receive posted needs no buffer in between.
    for (const Transfer& transfer : transfers)
      if (transfer.direction == Transfer::Direction::receive) start_receive(transfer, *operation);
    for (const Transfer& transfer : transfers)
      if (transfer.direction == Transfer::Direction::send) start_send(transfer, *operation);
    return pending(std::move(operation));
  }

  void barrier() override { check_mpi(MPI_Barrier(comm_), "MPI_Barrier"); }

  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    check_subgroup(ranks);
    Group whole, chosen;
    check_mpi(MPI_Comm_group(comm_, &whole.handle), "MPI_Comm_group");
    check_mpi(MPI_Group_incl(whole.handle, static_cast<int>(ranks.size()), ranks.data(), &chosen.handle),
              "MPI_Group_incl");
    MPI_Comm comm = MPI_COMM_NULL;
    check_mpi(MPI_Comm_create_group(comm_, chosen.handle, 0, &comm), "MPI_Comm_create_group");
    return std::make_unique<MpiCommunicator>(comm, largest_count_);
  }

  void abort(int exit_code) override {
    std::cout.flush();
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, exit_code);
    std::_Exit(exit_code);
  }

 private:
  struct Group {
    MPI_Group handle = MPI_GROUP_NULL;
    Group() = default;
    Group(const Group&) = delete;
    ~Group() {
      if (handle != MPI_GROUP_NULL) MPI_Group_free(&handle);
    }
  };

  // f(first element of the piece, its count), over `count` elements from `begin` on.
  template <class F>
  void in_pieces(const Tensor& tensor, std::int64_t begin, std::int64_t count, F&& f) const {
    for (std::int64_t done = 0; done < count; done += largest_count_) {
      const std::size_t offset = static_cast<std::size_t>(begin + done) * size_of(tensor.dtype());
      f(static_cast<char*>(tensor.data()) + offset, static_cast<int>(std::min(largest_count_, count - done)));
    }
  }

  // MPI counts the whole input in one int somewhere inside, and wants separate buffers.
  bool scatters_part_by_part(const Tensor& input, const Tensor& output) const {
    return input.elements() > largest_count_ || output.data() == part_of(input, output.elements(), rank_);
  }

  // f(from, to, count, root): each part is reduced to the rank that it belongs to.
  template <class F>
  void for_each_reduced_piece(const Tensor& input, const Tensor& output, F&& f) const {
    const std::int64_t part = output.elements();
    for (int root = 0; root < size_; ++root) {
      in_pieces(input, root * part, part, [&](char* from, int count) {
        const auto offset = from - part_of(input, part, root);
        char* to = static_cast<char*>(output.data()) + offset;
        const void* source = root == rank_ && from == to ? MPI_IN_PLACE : static_cast<const void*>(from);
        f(source, root == rank_ ? to : nullptr, count, root);
      });
    }
  }

  const void* gathered_from(const Tensor& input, const Tensor& output) const {
    return input.data() == part_of(output, input.elements(), rank_) ? MPI_IN_PLACE : input.data();
  }

  void copy_own_part(const Tensor& input, const Tensor& output) const {
    copy_bytes(input, Tensor(part_of(output, input.elements(), rank_), input.dtype(), {input.elements()}));
  }

  void start_receive(const Transfer& transfer, MpiOperation& operation) const {
    if (transfer.peer == rank_) return;
    const MPI_Datatype type = transport_type(transfer.tensor.dtype());
    in_pieces(transfer.tensor, 0, transfer.tensor.elements(), [&](char* data, int count) {
      MPI_Request* request = operation.add_receive(transfer.peer, type, count);
      check_mpi(MPI_Irecv(data, count, type, transfer.peer, 0, comm_, request), "MPI_Irecv");
    });
  }

  void start_send(const Transfer& transfer, MpiOperation& operation) const {
    if (transfer.peer == rank_) return;
    const MPI_Datatype type = transport_type(transfer.tensor.dtype());
    in_pieces(transfer.tensor, 0, transfer.tensor.elements(), [&](char* data, int count) {
      check_mpi(MPI_Isend(data, count, type, transfer.peer, 0, comm_, operation.add()), "MPI_Isend");
    });
  }

  void check_subgroup(const std::vector<int>& ranks) const {
    std::vector<int> sorted = ranks;
    std::sort(sorted.begin(), sorted.end());
    FULMEN_CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "a subgroup names a rank twice");
    FULMEN_CHECK(std::binary_search(sorted.begin(), sorted.end(), rank_), "rank {} asks for a subgroup without itself",
                 rank_);
    FULMEN_CHECK(sorted.front() >= 0 && sorted.back() < size_, "a subgroup of ranks {} to {} out of {}", sorted.front(),
                 sorted.back(), size_);
  }

  MPI_Comm comm_;
  std::int64_t largest_count_;
  int rank_ = 0;
  int size_ = 1;
};

}  // namespace

MpiSession::MpiSession() {
  int initialized = 0;
  check_mpi(MPI_Initialized(&initialized), "MPI_Initialized");
  FULMEN_CHECK(!initialized, "MPI was initialised before");
  int provided = MPI_THREAD_SINGLE;
  check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  FULMEN_CHECK(provided >= MPI_THREAD_FUNNELED, "this MPI does not allow threads other than the caller's");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

MpiSession::~MpiSession() {
  if (std::uncaught_exceptions() > 0) {
    // Finalising would wait for ranks that know nothing of this rank's failure.
    std::fprintf(stderr, "an error left the MPI session; ending all ranks\n");
    std::fflush(nullptr);
    MPI_Abort(MPI_COMM_WORLD, EXIT_FAILURE);
  }
  const int code = MPI_Finalize();
  if (code != MPI_SUCCESS) std::fprintf(stderr, "MPI_Finalize failed: %s\n", error_text(code).c_str());
}

std::unique_ptr<Communicator> MpiSession::world(std::int64_t largest_count) {
  FULMEN_CHECK(0 < largest_count && largest_count <= std::numeric_limits<int>::max(), "MPI counts of {}",
               largest_count);
  MPI_Comm comm = MPI_COMM_NULL;
  check_mpi(MPI_Comm_dup(MPI_COMM_WORLD, &comm), "MPI_Comm_dup");
  return std::make_unique<MpiCommunicator>(comm, largest_count);
}

}  // namespace fulmen
