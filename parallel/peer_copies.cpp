// Transfers between GPUs of one host by their copy engines.
//
// Each rank has an inbox of a few pieces for every other rank, and two counters for it. A sender waits until its
// receiver has taken enough pieces, copies the next into the inbox and counts it there. The receiver waits for that,
// copies it to its place and counts it as taken at the sender. A sum takes a piece from every other rank at once. All
// this is work in streams: the host waits for nothing but room in them. They hold some hundred pieces. All ways go
// forward together, a piece each, so that no two ranks wait for pieces that neither has yet asked for.
#include "parallel/peer_copies.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "framework/cuda_check.h"
#include "framework/gpu.h"
#include "framework/log.h"
#include "framework/profiler.h"
#include "kernels/elementwise.h"

namespace fulmen {
namespace {

constexpr int most_ranks = most_parts;
constexpr std::uint32_t pieces_held = 4;
// Hardware queues of a GPU. Where two streams share a queue, a wait for another rank blocks the work that this rank
// waits for.
constexpr int queues_needed = 32;
constexpr std::size_t counter_stride = 128;  // bytes: a line of its own for each

// The driver's operations on a word of memory in stream order. The runtime has none.
struct WordOperations {
  CUresult (*wait)(CUstream, CUdeviceptr, cuuint32_t, unsigned) = nullptr;
  CUresult (*write)(CUstream, CUdeviceptr, cuuint32_t, unsigned) = nullptr;
};

void* driver_function(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  FULMEN_CUDA_CHECK(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result));
  FULMEN_CHECK(result == cudaDriverEntryPointSuccess && found != nullptr, "the driver has no {}", name);
  return found;
}

const WordOperations& words() {
  static const WordOperations operations = {
      reinterpret_cast<decltype(WordOperations::wait)>(driver_function("cuStreamWaitValue32")),
      reinterpret_cast<decltype(WordOperations::write)>(driver_function("cuStreamWriteValue32"))};
  return operations;
}

void check_driver(CUresult status, const char* call) {
  FULMEN_CHECK(status == CUDA_SUCCESS, "{} failed with error {} of the driver", call, static_cast<int>(status));
}

// Where no exception may leave.
void report(cudaError_t status, const char* what) {
  if (status != cudaSuccess) log_warning("{} failed: {}", what, cudaGetErrorString(status));
}

// The data about itself that a rank sends to the others.
struct Introduction {
  char host[64];
  cudaIpcMemHandle_t memory;
  int usable, queues;
};

// Memory of one rank, as this process sees it.
class Inboxes {
 public:
  Inboxes() = default;
  Inboxes(std::byte* memory, int ranks, std::size_t piece_bytes)
      : memory_(memory), ranks_(ranks), piece_bytes_(piece_bytes) {}

  static std::size_t bytes(int ranks, std::size_t piece_bytes) {
    return head(ranks) + static_cast<std::size_t>(ranks) * pieces_held * piece_bytes;
  }
  std::byte* memory() const { return memory_; }
  // Pieces that `rank` has put into this memory, and pieces of the owner's that it has taken from its own.
  CUdeviceptr arrived(int rank) const { return counter(rank, 0); }
  CUdeviceptr taken(int rank) const { return counter(rank, 1); }
  std::byte* piece(int from, std::uint32_t number) const {
    const std::size_t place = static_cast<std::size_t>(from) * pieces_held + number % pieces_held;
    return memory_ + head(ranks_) + place * piece_bytes_;
  }

 private:
  static std::size_t head(int ranks) {
    const std::size_t counters = 2 * static_cast<std::size_t>(ranks) * counter_stride;
    return (counters + 4095) / 4096 * 4096;
  }
  CUdeviceptr counter(int rank, int which) const {
    return reinterpret_cast<CUdeviceptr>(
        memory_ + (2 * static_cast<std::size_t>(rank) + static_cast<std::size_t>(which)) * counter_stride);
  }

  std::byte* memory_ = nullptr;
  int ranks_ = 0;
  std::size_t piece_bytes_ = 0;
};

class Copies final : public Pending::Operation {
 public:
  explicit Copies(std::vector<gpu::Event> done) : done_(std::move(done)) {}
  void wait(Stream stream) override {
    for (const gpu::Event& event : done_) {
      if (stream.device.kind == DeviceKind::cuda)
        event.wait(stream);
      else
        event.synchronize();
    }
  }

 private:
  std::vector<gpu::Event> done_;
};

class IpcPeerCopies final : public PeerCopies {
 public:
  // `opened[r]`: rank r's memory, this rank's own included.
  IpcPeerCopies(Communicator& host, std::vector<Inboxes> opened, Device device, std::size_t piece_bytes)
      : host_(host),
        rank_(host.rank()),
        inboxes_(std::move(opened)),
        device_(device),
        piece_bytes_(piece_bytes),
        sums_(gpu::create_urgent_stream(device)),
        sends_(inboxes_.size()),
        receives_(inboxes_.size()) {
    load_kernels();
  }

  ~IpcPeerCopies() override {
    if (abandoned_ || cudaSetDevice(device_.index) != cudaSuccess) return;
    for (const auto* lines : {&sends_, &receives_})
      for (const Line& line : *lines) finish(line.stream);
    finish(sums_);
    for (std::size_t r = 0; r < inboxes_.size(); ++r)
      if (static_cast<int>(r) != rank_)
        report(cudaIpcCloseMemHandle(inboxes_[r].memory()), "closing the memory of another rank");
    host_.barrier();
    gpu::release(device_.index, own().memory());
  }

  void abandon() override { abandoned_ = true; }

  Pending start_exchange(std::span<const Transfer> transfers, Stream stream, Profiler* profiler,
                         const char* name) override {
    std::vector<gpu::Event> done;
    start_transfers(transfers, stream, profiler, name, done);
    return Pending(std::make_unique<Copies>(std::move(done)));
  }

  Pending start_reduce_scatter(const Tensor& input, const Tensor& output, Stream stream, Profiler* profiler,
                               const char* name) override {
    const Tensor all = input.flatten();
    const std::int64_t part = output.elements();
    std::vector<Tensor> parts;
    for (std::int64_t r = 0; r < ranks(); ++r) parts.push_back(all.slice(0, r * part, (r + 1) * part));
    std::vector<gpu::Event> done;
    start_sums(parts, output.flatten(), stream, profiler, name, done);
    return Pending(std::make_unique<Copies>(std::move(done)));
  }

  // Every rank sums a part, and sends the others its sum.
  Pending start_all_reduce(const Tensor& tensor, Stream stream, Profiler* profiler, const char* name) override {
    constexpr std::int64_t aligned = 128;
    const Tensor all = tensor.flatten();
    const std::int64_t count = all.elements(),
                       part = ((count + ranks() - 1) / ranks() + aligned - 1) / aligned * aligned;
    std::vector<Tensor> parts;
    for (std::int64_t r = 0; r < ranks(); ++r)
      parts.push_back(all.slice(0, std::min(r * part, count), std::min((r + 1) * part, count)));
    const Tensor own_part = parts[static_cast<std::size_t>(rank_)];
    std::vector<gpu::Event> done;
    start_sums(parts, own_part, stream, profiler, name, done);
    std::vector<Transfer> transfers;
    for (const int peer : others()) {
      transfers.push_back({Transfer::Direction::send, peer, own_part});
      transfers.push_back({Transfer::Direction::receive, peer, parts[static_cast<std::size_t>(peer)]});
    }
    // Another rank's part arrives over the sent part once that rank has summed it.
    start_transfers(transfers, sums_, profiler, name, done);
    return Pending(std::make_unique<Copies>(std::move(done)));
  }

 private:
  // The way to another rank, or from it.
  struct Line {
    Stream stream;
    std::uint32_t pieces = 0;  // that took it, modulo 2^32
  };

  // For sums: adds zeros to the inbox in each way. A kernel that is loaded when it is first launched may keep the host
  // until all streams are done. Here streams wait for other ranks, whose hosts theirs would keep.
  void load_kernels() const {
    for (const DType dtype : {DType::fp64, DType::fp32, DType::bf16})
      for (const std::size_t first : {std::size_t{0}, std::size_t{1}}) {  // in packets, and where they cannot be
        const Tensor zeros(own().piece(rank_, 0) + first * size_of(dtype), dtype, {64}, device_);
        sum_parts(execution_of_sums(), std::vector<Tensor>(inboxes_.size(), zeros), zeros);
      }
    gpu::synchronize(sums_);
  }
  Execution execution_of_sums() const {
    Execution execution;
    execution.device = device_;
    execution.stream = sums_;
    return execution;
  }

  int ranks() const { return static_cast<int>(inboxes_.size()); }
  // In the order of the ring, so that not all write to one rank at once.
  std::vector<int> others() const {
    std::vector<int> list;
    for (int i = 1; i < ranks(); ++i) list.push_back((rank_ + i) % ranks());
    return list;
  }
  Line& line_of(std::vector<Line>& lines, int peer) const {
    Line& line = lines[static_cast<std::size_t>(peer)];
    if (line.stream.handle == nullptr) line.stream = gpu::create_stream(device_);
    return line;
  }

  static void finish(Stream stream) {
    if (stream.handle == nullptr) return;
    report(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)), "waiting for the last copies between GPUs");
    gpu::destroy_stream(stream);
  }

  const Inboxes& own() const { return inboxes_[static_cast<std::size_t>(rank_)]; }
  static CUstream handle_of(Stream stream) { return static_cast<CUstream>(stream.handle); }

  // Until the counter, which is never far behind, is at least `value` modulo 2^32.
  static void wait_for(Stream stream, CUdeviceptr counter, std::uint32_t value) {
    check_driver(words().wait(handle_of(stream), counter, value, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
  }
  // Whoever sees the value must see the stream's earlier work.
  static void count(Stream stream, CUdeviceptr counter, std::uint32_t value) {
    check_driver(words().write(handle_of(stream), counter, value, CU_STREAM_WRITE_VALUE_DEFAULT),
                 "cuStreamWriteValue32");
  }

  // Within a GPU a plain copy would be a kernel, which had to wait for a kernel that fills the GPU.
  static void copy_by_engine(const Line& line, void* to, const void* from, std::size_t bytes) {
#if CUDART_VERSION >= 13000
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    std::size_t first = 0;
    FULMEN_CUDA_CHECK(cudaMemcpyBatchAsync(&to, &from, &bytes, 1, &attributes, &first, 1,
                                           static_cast<cudaStream_t>(line.stream.handle)));
#else
    gpu::copy(line.stream, to, from, bytes);
#endif
  }

  // The data that a call moves over a line, in pieces.
  struct Way {
    Line* line;
    int peer;
    bool sends;
    std::vector<std::span<std::byte>> pieces;
  };

  // In the order of their first transfers.
  std::vector<Way> ways_of(std::span<const Transfer> transfers) {
    std::vector<Way> ways;
    for (const Transfer& transfer : transfers) {
      const bool sends = transfer.direction == Transfer::Direction::send;
      Line* const line = &line_of(sends ? sends_ : receives_, transfer.peer);
      auto way = std::ranges::find(ways, line, &Way::line);
      if (way == ways.end()) way = ways.insert(ways.end(), Way{line, transfer.peer, sends, {}});
      auto* const data = static_cast<std::byte*>(transfer.tensor.data());
      for (std::size_t begin = 0; begin < transfer.tensor.bytes(); begin += piece_bytes_)
        way->pieces.emplace_back(data + begin, std::min(piece_bytes_, transfer.tensor.bytes() - begin));
    }
    return ways;
  }
  static std::size_t most_pieces(const std::vector<Way>& ways) {
    std::size_t most = 0;
    for (const Way& way : ways) most = std::max(most, way.pieces.size());
    return most;
  }

  // Piece i of every way that has so many.
  void move_pieces(const std::vector<Way>& ways, std::size_t i, Profiler* profiler, const char* name) {
    for (const Way& way : ways) {
      if (i >= way.pieces.size()) continue;
      if (way.sends)
        send(*way.line, way.peer, way.pieces[i], profiler, name);
      else
        receive(*way.line, way.peer, way.pieces[i], profiler, name);
    }
  }

  void send(Line& line, int peer, std::span<const std::byte> piece, Profiler* profiler, const char* name) {
    const Inboxes& theirs = inboxes_[static_cast<std::size_t>(peer)];
    wait_for(line.stream, own().taken(peer), line.pieces + 1 - pieces_held);
    {
      const ProfileScope scope = ProfileScope::communication(profiler, name, line.stream);
      gpu::copy(line.stream, theirs.piece(rank_, line.pieces), piece.data(), piece.size());
    }
    count(line.stream, theirs.arrived(rank_), ++line.pieces);
  }

  void receive(Line& line, int peer, std::span<std::byte> piece, Profiler* profiler, const char* name) {
    wait_for(line.stream, own().arrived(peer), line.pieces + 1);
    {
      const ProfileScope scope = ProfileScope::communication(profiler, name, line.stream);
      copy_by_engine(line, piece.data(), own().piece(peer, line.pieces), piece.size());
    }
    count(line.stream, inboxes_[static_cast<std::size_t>(peer)].taken(rank_), ++line.pieces);
  }

  gpu::Event mark(Stream stream) const {
    gpu::Event event(device_);
    event.record(stream);
    return event;
  }

  // Appends what is to be waited for to `done`.
  void start_transfers(std::span<const Transfer> transfers, Stream stream, Profiler* profiler, const char* name,
                       std::vector<gpu::Event>& done) {
    const std::vector<Way> ways = ways_of(transfers);
    const gpu::Event ready = mark(stream);
    for (const Way& way : ways) ready.wait(way.line->stream);
    for (std::size_t i = 0; i < most_pieces(ways); ++i) move_pieces(ways, i, profiler, name);
    for (const Way& way : ways) done.push_back(mark(way.line->stream));
  }

  // parts[r]: this rank's share of the sum of rank r. The own share goes to `output`.
  void start_sums(std::span<const Tensor> parts, const Tensor& output, Stream stream, Profiler* profiler,
                  const char* name, std::vector<gpu::Event>& done) {
    std::vector<Transfer> transfers;
    for (const int peer : others())
      transfers.push_back({Transfer::Direction::send, peer, parts[static_cast<std::size_t>(peer)]});
    const std::vector<Way> sends = ways_of(transfers);
    const gpu::Event ready = mark(stream);
    for (const Way& way : sends) ready.wait(way.line->stream);
    ready.wait(sums_);
    // Pieces are taken in their order, whoever takes them.
    for (const int peer : others()) mark(line_of(receives_, peer).stream).wait(sums_);

    const Tensor& own_part = parts[static_cast<std::size_t>(rank_)];
    const std::int64_t count = output.elements();
    const auto piece = static_cast<std::int64_t>(piece_bytes_ / size_of(output.dtype()));
    const std::size_t own_pieces = static_cast<std::size_t>((count + piece - 1) / piece);
    for (std::size_t i = 0; i < std::max(most_pieces(sends), own_pieces); ++i) {
      move_pieces(sends, i, profiler, name);
      if (i >= own_pieces) continue;
      const std::int64_t begin = static_cast<std::int64_t>(i) * piece, end = std::min(begin + piece, count);
      sum_pieces(own_part.slice(0, begin, end), output.slice(0, begin, end), profiler, name);
    }
    for (const Way& way : sends) done.push_back(mark(way.line->stream));
    done.push_back(mark(sums_));
    for (const int peer : others()) done.back().wait(line_of(receives_, peer).stream);
  }

  // Adds the next piece of every other rank and this rank's own.
  void sum_pieces(const Tensor& mine, const Tensor& sum, Profiler* profiler, const char* name) {
    std::vector<Tensor> all(inboxes_.size(), mine);
    for (const int peer : others()) {
      const Line& line = line_of(receives_, peer);
      wait_for(sums_, own().arrived(peer), line.pieces + 1);
      all[static_cast<std::size_t>(peer)] = Tensor(own().piece(peer, line.pieces), sum.dtype(), sum.shape(), device_);
    }
    {
      const ProfileScope scope = ProfileScope::communication(profiler, name, sums_);
      sum_parts(execution_of_sums(), all, sum);
    }
    for (const int peer : others())
      count(sums_, inboxes_[static_cast<std::size_t>(peer)].taken(rank_), ++line_of(receives_, peer).pieces);
  }

  Communicator& host_;
  int rank_;
  bool abandoned_ = false;
  std::vector<Inboxes> inboxes_;
  Device device_;
  std::size_t piece_bytes_;
  Stream sums_;
  std::vector<Line> sends_, receives_;  // by peer
};

Introduction introduce(std::byte* memory) {
  Introduction own{};
  if (gethostname(own.host, sizeof own.host - 1) != 0) throw_system_error("cannot tell this host's name");
  own.usable = memory != nullptr && cudaIpcGetMemHandle(&own.memory, memory) == cudaSuccess;
  // The number that framework/gpu has asked for, or the user before it.
  const char* const queues = std::getenv("CUDA_DEVICE_MAX_CONNECTIONS");
  own.queues = queues != nullptr ? std::atoi(queues) : 0;
  return own;
}

}  // namespace

std::unique_ptr<PeerCopies> open_peer_copies(Communicator& host, Device device, std::size_t piece_bytes) {
  const int ranks = host.size(), rank = host.rank();
  const auto refuse = [&](const std::string& why) {
    if (rank == 0) log_info("all transfers of {} ranks go through NCCL's kernels: {}", ranks, why);
    return nullptr;
  };
  if (ranks > most_ranks) return refuse(fmt::format("copy engines serve groups of up to {}", most_ranks));
  FULMEN_CUDA_CHECK(cudaSetDevice(device.index));
  auto* const memory = static_cast<std::byte*>(gpu::allocate(device.index, Inboxes::bytes(ranks, piece_bytes)));
  const Introduction own = introduce(memory);
  std::vector<Introduction> all(static_cast<std::size_t>(ranks));
  const auto bytes = static_cast<std::int64_t>(sizeof(Introduction));
  host.all_gather(Tensor(const_cast<Introduction*>(&own), DType::uint8, {bytes}),
                  Tensor(all.data(), DType::uint8, {bytes * ranks}), {});
  const bool queues = std::ranges::all_of(all, [](const Introduction& other) { return other.queues >= queues_needed; });
  const bool one_host =
      std::ranges::all_of(all, [&](const Introduction& other) { return std::strcmp(other.host, own.host) == 0; });
  const bool usable = std::ranges::all_of(all, [](const Introduction& other) { return other.usable != 0; });

  std::vector<Inboxes> opened(static_cast<std::size_t>(ranks));
  std::int64_t reached = 1;
  for (int other = 0; other < ranks && one_host && usable && queues; ++other) {
    void* theirs = memory;
    if (other != rank) {
      const cudaError_t status =
          cudaIpcOpenMemHandle(&theirs, all[static_cast<std::size_t>(other)].memory, cudaIpcMemLazyEnablePeerAccess);
      if (status != cudaSuccess) theirs = nullptr;
    }
    if (theirs == nullptr) reached = 0;
    opened[static_cast<std::size_t>(other)] = Inboxes(static_cast<std::byte*>(theirs), ranks, piece_bytes);
  }
  cudaGetLastError();  // a refusal is not a failure of what comes next
  const bool all_reached = host.all_reduce(reached, ReduceOp::min) != 0;
  if (one_host && usable && queues && all_reached)
    return std::make_unique<IpcPeerCopies>(host, std::move(opened), device, piece_bytes);
  for (int other = 0; other < ranks; ++other)
    if (other != rank && opened[static_cast<std::size_t>(other)].memory() != nullptr)
      report(cudaIpcCloseMemHandle(opened[static_cast<std::size_t>(other)].memory()),
             "closing the memory of another rank");
  host.barrier();  // nobody has the memory open that is given back
  if (memory != nullptr) gpu::release(device.index, memory);
  if (!one_host) return refuse("they are on several hosts");
  if (!queues)
    return refuse(
        fmt::format("CUDA_DEVICE_MAX_CONNECTIONS is below {}, so that streams wait for each other", queues_needed));
  return refuse(usable ? "a GPU cannot reach the memory of another" : "no memory that processes could share");
}

}  // namespace fulmen
