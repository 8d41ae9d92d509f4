// Exchanges between GPUs of one host by their copy engines.
//
// Each rank has an inbox of a few pieces for every other rank, and two counters for it. A sender waits until its receiver has
// taken enough pieces, copies the next into the inbox and counts it there; the receiver waits for that, copies it to its place
// and counts it as taken at the sender. All this is work in streams: the host waits for nothing.
#include "parallel/peer_copies.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "framework/cuda_check.h"
#include "framework/gpu.h"
#include "framework/log.h"
#include "framework/profiler.h"

namespace fulmen {
namespace {

constexpr int most_ranks = 8;
constexpr std::size_t piece_bytes = std::size_t{16} << 20;
constexpr std::uint32_t pieces_held = 4;
constexpr std::size_t counter_stride = 128;   // bytes: a line of its own for each

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

// What a rank tells the others of itself.
struct Introduction {
  char host[64];
  cudaIpcMemHandle_t memory;
  int usable;
};

// Memory of one rank, as this process sees it.
class Inboxes {
 public:
  Inboxes() = default;
  Inboxes(std::byte* memory, int ranks) : memory_(memory), ranks_(ranks) {}

  static std::size_t bytes(int ranks) { return head(ranks) + static_cast<std::size_t>(ranks) * pieces_held * piece_bytes; }
  std::byte* memory() const { return memory_; }
  // Pieces that `rank` has put into this memory, and pieces of the owner's that it has taken from its own.
  CUdeviceptr arrived(int rank) const { return counter(rank, 0); }
  CUdeviceptr taken(int rank) const { return counter(rank, 1); }
  std::byte* piece(int from, std::uint32_t number) const {
    const std::size_t place = static_cast<std::size_t>(from) * pieces_held + number % pieces_held;
    return memory_ + head(ranks_) + place * piece_bytes;
  }

 private:
  static std::size_t head(int ranks) {
    const std::size_t counters = 2 * static_cast<std::size_t>(ranks) * counter_stride;
    return (counters + 4095) / 4096 * 4096;
  }
  CUdeviceptr counter(int rank, int which) const {
    return reinterpret_cast<CUdeviceptr>(memory_ + (2 * static_cast<std::size_t>(rank) + static_cast<std::size_t>(which)) * counter_stride);
  }

  std::byte* memory_ = nullptr;
  int ranks_ = 0;
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
  // `opened[r]`: rank r's memory, one's own included.
  IpcPeerCopies(Communicator& host, std::vector<Inboxes> opened, Device device)
      : host_(host), rank_(host.rank()), inboxes_(std::move(opened)), device_(device), sends_(inboxes_.size()), receives_(inboxes_.size()) {}

  ~IpcPeerCopies() override {
    if (abandoned_ || cudaSetDevice(device_.index) != cudaSuccess) return;
    for (auto* lines : {&sends_, &receives_})
      for (const Line& line : *lines) {
        if (line.stream.handle == nullptr) continue;
        report(cudaStreamSynchronize(handle_of(line)), "waiting for the last copies between GPUs");
        gpu::destroy_stream(line.stream);
      }
    for (std::size_t r = 0; r < inboxes_.size(); ++r)
      if (static_cast<int>(r) != rank_) report(cudaIpcCloseMemHandle(inboxes_[r].memory()), "closing the memory of another rank");
    host_.barrier();
    gpu::release(device_.index, own().memory());
  }

  void abandon() override { abandoned_ = true; }

  Pending start_exchange(std::span<const Transfer> transfers, Stream stream, Profiler* profiler, const char* name) override {
    gpu::Event ready(device_);
    ready.record(stream);
    std::vector<gpu::Event> done;
    for (const Transfer& transfer : transfers) {
      const bool sends = transfer.direction == Transfer::Direction::send;
      Line& line = (sends ? sends_ : receives_)[static_cast<std::size_t>(transfer.peer)];
      if (line.stream.handle == nullptr) line.stream = gpu::create_stream(device_);
      ready.wait(line.stream);
      auto* const data = static_cast<std::byte*>(transfer.tensor.data());
      for (std::size_t begin = 0; begin < transfer.tensor.bytes(); begin += piece_bytes) {
        const std::size_t bytes = std::min(piece_bytes, transfer.tensor.bytes() - begin);
        if (sends)
          send(line, transfer.peer, data + begin, bytes, profiler, name);
        else
          receive(line, transfer.peer, data + begin, bytes, profiler, name);
      }
      done.emplace_back(device_);
      done.back().record(line.stream);
    }
    return Pending(std::make_unique<Copies>(std::move(done)));
  }

 private:
  // The way to another rank, or from it.
  struct Line {
    Stream stream;
    std::uint32_t pieces = 0;   // that took it, modulo 2^32
  };

  const Inboxes& own() const { return inboxes_[static_cast<std::size_t>(rank_)]; }
  static CUstream handle_of(const Line& line) { return static_cast<CUstream>(line.stream.handle); }

  // Until the counter, which is never far behind, is at least `value` modulo 2^32.
  static void wait_for(const Line& line, CUdeviceptr counter, std::uint32_t value) {
    check_driver(words().wait(handle_of(line), counter, value, CU_STREAM_WAIT_VALUE_GEQ), "cuStreamWaitValue32");
  }
  // What the stream did before is to be seen by who sees the value.
  static void count(const Line& line, CUdeviceptr counter, std::uint32_t value) {
    check_driver(words().write(handle_of(line), counter, value, CU_STREAM_WRITE_VALUE_DEFAULT), "cuStreamWriteValue32");
  }

  // Within a GPU a plain copy would be a kernel, which had to wait for the one that fills the GPU.
  static void copy_by_engine(const Line& line, void* to, const void* from, std::size_t bytes) {
#if CUDART_VERSION >= 13000
    cudaMemcpyAttributes attributes{};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
    std::size_t first = 0;
    FULMEN_CUDA_CHECK(cudaMemcpyBatchAsync(&to, &from, &bytes, 1, &attributes, &first, 1, static_cast<cudaStream_t>(line.stream.handle)));
#else
    gpu::copy(line.stream, to, from, bytes);
#endif
  }

  void send(Line& line, int peer, const std::byte* data, std::size_t bytes, Profiler* profiler, const char* name) {
    const Inboxes& theirs = inboxes_[static_cast<std::size_t>(peer)];
    wait_for(line, own().taken(peer), line.pieces + 1 - pieces_held);
    {
      const ProfileScope scope = ProfileScope::communication(profiler, name, line.stream);
      gpu::copy(line.stream, theirs.piece(rank_, line.pieces), data, bytes);
    }
    count(line, theirs.arrived(rank_), ++line.pieces);
  }

  void receive(Line& line, int peer, std::byte* data, std::size_t bytes, Profiler* profiler, const char* name) {
    wait_for(line, own().arrived(peer), line.pieces + 1);
    {
      const ProfileScope scope = ProfileScope::communication(profiler, name, line.stream);
      copy_by_engine(line, data, own().piece(peer, line.pieces), bytes);
    }
    count(line, inboxes_[static_cast<std::size_t>(peer)].taken(rank_), ++line.pieces);
  }

  Communicator& host_;
  int rank_;
  bool abandoned_ = false;
  std::vector<Inboxes> inboxes_;
  Device device_;
  std::vector<Line> sends_, receives_;   // by peer
};

Introduction introduce(std::byte* memory) {
  Introduction own{};
  if (gethostname(own.host, sizeof own.host - 1) != 0) throw_system_error("cannot tell this host's name");
  own.usable = memory != nullptr && cudaIpcGetMemHandle(&own.memory, memory) == cudaSuccess;
  return own;
}

}  // namespace

std::unique_ptr<PeerCopies> open_peer_copies(Communicator& host, Device device) {
  const int ranks = host.size(), rank = host.rank();
  const auto refuse = [&](const std::string& why) {
    if (rank == 0) log_info("exchanges of {} ranks go through NCCL's kernels: {}", ranks, why);
    return nullptr;
  };
  if (ranks > most_ranks) return refuse(fmt::format("copy engines serve groups of up to {}", most_ranks));
  FULMEN_CUDA_CHECK(cudaSetDevice(device.index));
  auto* const memory = static_cast<std::byte*>(gpu::allocate(device.index, Inboxes::bytes(ranks)));
  const Introduction own = introduce(memory);
  std::vector<Introduction> all(static_cast<std::size_t>(ranks));
  const auto bytes = static_cast<std::int64_t>(sizeof(Introduction));
  host.all_gather(Tensor(const_cast<Introduction*>(&own), DType::uint8, {bytes}), Tensor(all.data(), DType::uint8, {bytes * ranks}), {});
  const bool one_host = std::ranges::all_of(all, [&](const Introduction& other) { return std::strcmp(other.host, own.host) == 0; });
  const bool usable = std::ranges::all_of(all, [](const Introduction& other) { return other.usable != 0; });

  std::vector<Inboxes> opened(static_cast<std::size_t>(ranks));
  std::int64_t reached = 1;
  for (int other = 0; other < ranks && one_host && usable; ++other) {
    void* theirs = memory;
    if (other != rank) {
      const cudaError_t status =
          cudaIpcOpenMemHandle(&theirs, all[static_cast<std::size_t>(other)].memory, cudaIpcMemLazyEnablePeerAccess);
      if (status != cudaSuccess) theirs = nullptr;
    }
    if (theirs == nullptr) reached = 0;
    opened[static_cast<std::size_t>(other)] = Inboxes(static_cast<std::byte*>(theirs), ranks);
  }
  cudaGetLastError();   // a refusal is not a failure of what comes next
  const bool all_reached = host.all_reduce(reached, ReduceOp::min) != 0;
  if (one_host && usable && all_reached) return std::make_unique<IpcPeerCopies>(host, std::move(opened), device);
  for (int other = 0; other < ranks; ++other)
    if (other != rank && opened[static_cast<std::size_t>(other)].memory() != nullptr)
      report(cudaIpcCloseMemHandle(opened[static_cast<std::size_t>(other)].memory()), "closing the memory of another rank");
  host.barrier();   // no one has the memory open that is given back
  if (memory != nullptr) gpu::release(device.index, memory);
  if (!one_host) return refuse("they are on several hosts");
  return refuse(usable ? "a GPU cannot reach the memory of another" : "no memory that processes could share");
}

}  // namespace fulmen
