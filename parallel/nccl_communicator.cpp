// GPU tensors over NCCL.
#include "parallel/nccl_communicator.h"

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <string>
#include <utility>

#include "framework/cuda_check.h"
#include "framework/gpu.h"
#include "framework/profiler.h"
#include "parallel/peer_copies.h"
#include "parallel/transfer_checks.h"

namespace fulmen {
namespace {

// `comm` may be null: then the words describe the last failure anywhere in this process.
void check_nccl(ncclResult_t status, const char* call, ncclComm_t comm = nullptr) {
  if (status == ncclSuccess) [[likely]]
    return;
  throw InternalError(fmt::format("{} failed: {}: {}", call, ncclGetErrorString(status), ncclGetLastError(comm)));
}

ncclDataType_t arithmetic_type(DType dtype) {
  switch (dtype) {
    case DType::fp64: return ncclFloat64;
    case DType::fp32: return ncclFloat32;
    case DType::bf16: return ncclBfloat16;
    case DType::fp16: return ncclFloat16;
    case DType::int64: return ncclInt64;
    case DType::int32: return ncclInt32;
    case DType::uint64: return ncclUint64;
    case DType::uint32: return ncclUint32;
    case DType::uint8: return ncclUint8;
    case DType::uint16: break;
  }
  throw InternalError(fmt::format("NCCL cannot reduce {}", name_of(dtype)));
}

ncclRedOp_t nccl_op(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return ncclSum;
    case ReduceOp::max: return ncclMax;
    case ReduceOp::min: return ncclMin;
  }
  throw InternalError("unknown reduction");
}

std::size_t count_of(const Tensor& tensor) { return static_cast<std::size_t>(tensor.elements()); }

cudaStream_t handle_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

// The end of a started operation, as a mark in the communication stream.
class NcclOperation final : public Pending::Operation {
 public:
  explicit NcclOperation(gpu::Event done) : done_(std::move(done)) {}

  void wait(Stream stream) override {
    if (stream.device.kind == DeviceKind::cuda)
      done_.wait(stream);
    else
      done_.synchronize();
  }

 private:
  gpu::Event done_;
};

class NcclCommunicator final : public Communicator {
 public:
  using Communicator::all_reduce;

  // Collective: `rendezvous_` is a copy of `host`, so that connecting does not get between other operations of `host`.
  // The first operation on device tensors may be an exchange, which some ranks make earlier than others.
  NcclCommunicator(std::unique_ptr<Communicator> host, Device device, std::size_t least_bytes_to_copy,
                   std::shared_ptr<Profiler*> profiler)
      : host_(std::move(host)),
        device_(device),
        least_bytes_to_copy_(least_bytes_to_copy),
        profiler_(std::move(profiler)) {
    std::vector<int> all(static_cast<std::size_t>(host_->size()));
    std::iota(all.begin(), all.end(), 0);
    rendezvous_ = host_->subgroup(all);
  }

  ~NcclCommunicator() override {
    // Destroying waits for the operations under way: while an exception unwinds, the other ranks may never come.
    const bool unwinding = std::uncaught_exceptions() > 0;
    if (copies_ && (unwinding || cancelled_)) copies_->abandon();
    if (cudaSetDevice(device_.index) != cudaSuccess) return;
    if (comm_ != nullptr && !cancelled_) {
      const ncclResult_t status = unwinding ? ncclCommAbort(comm_) : ncclCommDestroy(comm_);
      if (status != ncclSuccess)
        std::fprintf(stderr, "ending an NCCL communicator failed: %s\n", ncclGetErrorString(status));
    }
    gpu::destroy_stream(own_stream_);
  }

  int rank() const override { return host_->rank(); }
  int size() const override { return host_->size(); }

  void all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    if (on_host(tensor)) return host_->all_reduce(tensor, op, stream);
    check_all_reduce(tensor, stream);
    connect();
    run_all_reduce(tensor, op, stream);
  }

  Pending start_all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) override {
    if (on_host(tensor)) return host_->start_all_reduce(tensor, op, stream);
    check_all_reduce(tensor, stream);
    connect();
    if (sums_by_copies(tensor, op, tensor.bytes() / static_cast<std::size_t>(size())))
      return copies_->start_all_reduce(tensor, stream, *profiler_, all_reduce_name_.c_str());
    return start(stream, all_reduce_name_, [&](Stream own) { run_all_reduce(tensor, op, own); });
  }

  void reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->reduce_scatter(input, output, op, stream);
    check_scatter(input, output, stream);
    connect();
    run_reduce_scatter(input, output, op, stream);
  }

  Pending start_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->start_reduce_scatter(input, output, op, stream);
    check_scatter(input, output, stream);
    connect();
    if (sums_by_copies(input, op, output.bytes()))
      return copies_->start_reduce_scatter(input, output, stream, *profiler_, reduce_scatter_name_.c_str());
    return start(stream, reduce_scatter_name_, [&](Stream own) { run_reduce_scatter(input, output, op, own); });
  }

  void all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->all_gather(input, output, stream);
    check_gather(input, output, stream);
    connect();
    run_all_gather(input, output, stream);
  }

  Pending start_all_gather(const Tensor& input, const Tensor& output, Stream stream) override {
    if (on_host(input) && on_host(output)) return host_->start_all_gather(input, output, stream);
    check_gather(input, output, stream);
    connect();
    if (collectives_by_copies_ && input.bytes() >= least_bytes_to_copy_)
      return start_gather_by_copies(input, output, stream);
    return start(stream, all_gather_name_, [&](Stream own) { run_all_gather(input, output, own); });
  }

  void broadcast(const Tensor& tensor, int root, Stream stream) override {
    if (on_host(tensor)) return host_->broadcast(tensor, root, stream);
    check_operand(tensor, "broadcast", device_);
    check_root(root, size());
    check_stream(stream, device_);
    connect();
    check(ncclBroadcast(tensor.data(), tensor.data(), tensor.bytes(), ncclUint8, root, comm_, handle_of(stream)),
          "ncclBroadcast");
  }

  void exchange(std::span<const Transfer> transfers, Stream stream) override {
    if (all_on_host(transfers)) return host_->exchange(transfers, stream);
    check_exchange(transfers, stream);
    connect();
    prepare_exchanges();
    if (copies_)
      start_copies(transfers, stream).wait(stream);
    else
      run_exchange(transfers, stream);
  }

  Pending start_exchange(std::span<const Transfer> transfers, Stream stream) override {
    if (all_on_host(transfers)) return host_->start_exchange(transfers, stream);
    check_exchange(transfers, stream);
    connect();
    prepare_exchanges();
    if (copies_) return start_copies(transfers, stream);
    return start(stream, exchange_name_, [&](Stream own) { run_exchange(transfers, own); });
  }

  void barrier() override { host_->barrier(); }

  void limit_multiprocessors(int count) override { multiprocessors_ = count; }

  void connect(Connections connections) override {
    if (size() == 1) return;
    connect();
    if (connections == Connections::plain) return;
    open_copies();
    collectives_by_copies_ = copies_ != nullptr;
    if (connections == Connections::exchanges) prepare_exchanges();
  }

  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override {
    return std::make_unique<NcclCommunicator>(host_->subgroup(ranks), device_, least_bytes_to_copy_, profiler_);
  }

  void set_name(const std::string& name) override {
    all_reduce_name_ = name + ": all-reduce";
    reduce_scatter_name_ = name + ": reduce-scatter";
    all_gather_name_ = name + ": all-gather";
    exchange_name_ = name + ": exchange";
  }
  void report_to(Profiler* profiler) override { *profiler_ = profiler; }

  // The kernels that wait for other ranks end, and with them whatever waits for the stream. The handle stays: the
  // thread of the step may be holding it.
  void cancel() override {
    ncclComm_t comm = comm_;
    if (comm == nullptr || cancelled_.exchange(true)) return;
    const ncclResult_t status = ncclCommAbort(comm);
    if (status != ncclSuccess)
      std::fprintf(stderr, "aborting an NCCL communicator failed: %s\n", ncclGetErrorString(status));
  }

  void abort(int exit_code) override {
    cancel();
    host_->abort(exit_code);
  }

 private:
  static bool on_host(const Tensor& tensor) { return tensor.device().kind == DeviceKind::cpu; }
  static bool all_on_host(std::span<const Transfer> transfers) {
    return std::ranges::all_of(transfers, [](const Transfer& transfer) { return on_host(transfer.tensor); });
  }

  void check(ncclResult_t status, const char* call) const { check_nccl(status, call, comm_); }

  void check_all_reduce(const Tensor& tensor, Stream stream) const {
    check_operand(tensor, "all_reduce", device_);
    check_stream(stream, device_);
    arithmetic_type(tensor.dtype());
  }

  void check_scatter(const Tensor& input, const Tensor& output, Stream stream) const {
    check_reduce_scatter(input, output, size(), device_);
    check_stream(stream, device_);
    arithmetic_type(input.dtype());
  }

  void check_gather(const Tensor& input, const Tensor& output, Stream stream) const {
    check_all_gather(input, output, size(), device_);
    check_stream(stream, device_);
  }

  void check_exchange(std::span<const Transfer> transfers, Stream stream) const {
    check_transfers(transfers, size(), device_);
    check_stream(stream, device_);
    transfers_to_self(transfers, rank());
  }

  // Before every operation: makes the device current, the ranks connected the first time, and hears of failures since.
  void connect() {
    FULMEN_CUDA_CHECK(cudaSetDevice(device_.index));
    FULMEN_CHECK(!cancelled_, "an operation after the communicator was cancelled");
    if (comm_ != nullptr) {
      ncclResult_t status = ncclSuccess;
      check(ncclCommGetAsyncError(comm_, &status), "ncclCommGetAsyncError");
      return check(status, "an NCCL operation under way");
    }
    // All of a collective's algorithms now, not each at its first use. A user's own setting goes before.
    if (setenv("NCCL_RUNTIME_CONNECT", "0", 0) != 0) throw_system_error("cannot set NCCL_RUNTIME_CONNECT");
    ncclUniqueId id{};
    if (rank() == 0) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
    rendezvous_->broadcast(Tensor(id.internal, DType::uint8, {NCCL_UNIQUE_ID_BYTES}), 0, {});
    ncclConfig_t configuration = NCCL_CONFIG_INITIALIZER;
    if (multiprocessors_ > 0) {
      configuration.maxCTAs = multiprocessors_;  // one each
      configuration.cgaClusterSize = 1;          // wherever they are: the products leave no neighbours free
    }
    ncclComm_t comm = nullptr;
    check_nccl(ncclCommInitRankConfig(&comm, size(), id, rank(), &configuration), "ncclCommInitRankConfig");
    comm_ = comm;
  }

  void open_copies() {
    if (copies_asked_for_ || size() == 1) return;
    copies_ = open_peer_copies(*rendezvous_, device_);
    copies_asked_for_ = true;
  }

  // At the first exchange, if not before.
  void prepare_exchanges() {
    if (exchanges_prepared_ || size() == 1) return;
    open_copies();
    if (!copies_) connect_neighbours();
    exchanges_prepared_ = true;
  }

  bool sums_by_copies(const Tensor& tensor, ReduceOp op, std::size_t part_bytes) const {
    return collectives_by_copies_ && op == ReduceOp::sum && part_bytes >= least_bytes_to_copy_ &&
           (tensor.dtype() == DType::fp32 || tensor.dtype() == DType::bf16 || tensor.dtype() == DType::fp64);
  }

  Pending start_copies(std::span<const Transfer> transfers, Stream stream) {
    copy_own(transfers, stream);
    std::vector<Transfer> others;
    for (const Transfer& transfer : transfers)
      if (transfer.peer != rank() && transfer.tensor.elements() > 0) others.push_back(transfer);
    // Without others what was copied is still to be waited for.
    if (others.empty()) return start(stream, exchange_name_, [](Stream) {});
    return copies_->start_exchange(others, stream, *profiler_, exchange_name_.c_str());
  }

  // Sends in the order of the ring, so that not all write to one rank at once.
  Pending start_gather_by_copies(const Tensor& input, const Tensor& output, Stream stream) {
    const auto bytes_of = [](const Tensor& tensor) {
      return Tensor(tensor.data(), DType::uint8, {static_cast<std::int64_t>(tensor.bytes())}, tensor.device());
    };
    const Tensor from = bytes_of(input), to = bytes_of(output);
    const auto part = static_cast<std::int64_t>(input.bytes());
    const Tensor own = to.slice(0, rank() * part, (rank() + 1) * part);
    if (own.data() != from.data()) gpu::copy(stream, own.data(), from.data(), from.bytes());
    std::vector<Transfer> transfers;
    for (int i = 1; i < size(); ++i) {
      const int target = (rank() + i) % size(), source = (rank() + size() - i) % size();
      transfers.push_back({Transfer::Direction::send, target, from});
      transfers.push_back({Transfer::Direction::receive, source, to.slice(0, source * part, (source + 1) * part)});
    }
    return copies_->start_exchange(transfers, stream, *profiler_, all_gather_name_.c_str());
  }

  // Where the copy engines do not serve: makes the connections to the previous and the next rank, both ways. NCCL makes
  // a connection at its first use, which waits on a GPU for the kernels under way. Where a side's first group sends and
  // receives and the other's only receives, those kernels may be waiting for that very connection.
  void connect_neighbours() {
    const int next = (rank() + 1) % size(), previous = (rank() + size() - 1) % size();
    void* bytes = nullptr;
    FULMEN_CUDA_CHECK(cudaMalloc(&bytes, 4));
    const Stream stream = gpu::create_urgent_stream(device_);
    const auto byte = [&](int i) { return static_cast<std::byte*>(bytes) + i; };
    const auto handle = handle_of(stream);
    check(ncclGroupStart(), "ncclGroupStart");
    ncclResult_t status = ncclSend(byte(0), 1, ncclUint8, next, comm_, handle);
    if (status == ncclSuccess) status = ncclRecv(byte(1), 1, ncclUint8, previous, comm_, handle);
    if (status == ncclSuccess && next != previous) status = ncclSend(byte(0), 1, ncclUint8, previous, comm_, handle);
    if (status == ncclSuccess && next != previous) status = ncclRecv(byte(2), 1, ncclUint8, next, comm_, handle);
    const ncclResult_t ended = ncclGroupEnd();
    if (status == ncclSuccess && ended == ncclSuccess) gpu::synchronize(stream);
    gpu::destroy_stream(stream);
    FULMEN_CUDA_CHECK(cudaFree(bytes));
    check(status, "ncclSend or ncclRecv");
    check(ended, "ncclGroupEnd");
  }

  void run_all_reduce(const Tensor& tensor, ReduceOp op, Stream stream) {
    check(ncclAllReduce(tensor.data(), tensor.data(), count_of(tensor), arithmetic_type(tensor.dtype()), nccl_op(op),
                        comm_, handle_of(stream)),
          "ncclAllReduce");
  }

  void run_reduce_scatter(const Tensor& input, const Tensor& output, ReduceOp op, Stream stream) {
    check(ncclReduceScatter(input.data(), output.data(), count_of(output), arithmetic_type(input.dtype()), nccl_op(op),
                            comm_, handle_of(stream)),
          "ncclReduceScatter");
  }

  void run_all_gather(const Tensor& input, const Tensor& output, Stream stream) {
    check(ncclAllGather(input.data(), output.data(), input.bytes(), ncclUint8, comm_, handle_of(stream)),
          "ncclAllGather");
  }

  void copy_own(std::span<const Transfer> transfers, Stream stream) const {
    for (const auto& [from, to] : transfers_to_self(transfers, rank()))
      if (from.data() != to.data()) gpu::copy(stream, to.data(), from.data(), from.bytes());
  }

  void run_exchange(std::span<const Transfer> transfers, Stream stream) {
    copy_own(transfers, stream);
    check(ncclGroupStart(), "ncclGroupStart");
    ncclResult_t status = ncclSuccess;
    for (const Transfer& transfer : transfers)
      if (status == ncclSuccess && transfer.peer != rank() && transfer.tensor.elements() > 0)
        status = send_or_receive(transfer, stream);
    // A group once begun is ended, whatever became of it.
    const ncclResult_t ended = ncclGroupEnd();
    check(status, "ncclSend or ncclRecv");
    check(ended, "ncclGroupEnd");
  }

  ncclResult_t send_or_receive(const Transfer& transfer, Stream stream) const {
    const Tensor& tensor = transfer.tensor;
    if (transfer.direction == Transfer::Direction::send)
      return ncclSend(tensor.data(), tensor.bytes(), ncclUint8, transfer.peer, comm_, handle_of(stream));
    return ncclRecv(tensor.data(), tensor.bytes(), ncclUint8, transfer.peer, comm_, handle_of(stream));
  }

  // run(stream) on the communicator's own stream, after what is in the caller's now.
  template <class Run>
  Pending start(Stream callers, const std::string& name, Run&& run) {
    // Communication that other ranks wait for goes before the arithmetic that it overlaps with.
    if (own_stream_.handle == nullptr) own_stream_ = gpu::create_urgent_stream(device_);
    gpu::Event ready(device_), done(device_);
    ready.record(callers);
    ready.wait(own_stream_);
    {
      const ProfileScope scope = ProfileScope::communication(*profiler_, name.c_str(), own_stream_);
      run(own_stream_);
    }
    done.record(own_stream_);
    return Pending(std::make_unique<NcclOperation>(std::move(done)));
  }

  std::unique_ptr<Communicator> host_, rendezvous_;
  Device device_;
  std::size_t least_bytes_to_copy_;
  std::atomic<ncclComm_t> comm_ = nullptr;  // null until the first operation on device tensors
  std::atomic<bool> cancelled_ = false;
  bool copies_asked_for_ = false, exchanges_prepared_ = false;
  bool collectives_by_copies_ = false;  // large started collectives, once connect() has said so on all ranks
  std::unique_ptr<PeerCopies> copies_;  // null: exchanges are NCCL's, too
  int multiprocessors_ = 0;
  Stream own_stream_;                    // of started operations; null until the first
  std::shared_ptr<Profiler*> profiler_;  // shared by a communicator and all its subgroups
  std::string all_reduce_name_ = "all-reduce", reduce_scatter_name_ = "reduce-scatter", all_gather_name_ = "all-gather",
              exchange_name_ = "exchange";
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host, Device device,
                                                     std::size_t least_bytes_to_copy) {
  gpu::require(device);
  return std::make_unique<NcclCommunicator>(std::move(host), device, least_bytes_to_copy,
                                            std::make_shared<Profiler*>(nullptr));
}

}  // namespace fulmen
