// Memory and disk before a run begins.
#include "train/preflight.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <limits>
#include <map>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/place.h"
#include "framework/gpu.h"
#include "framework/hash.h"
#include "framework/host_memory.h"
#include "framework/text.h"
#include "model/stage.h"
#include "parallel/shard_groups.h"
#include "train/memory_estimate.h"

namespace fulmen {

double checkpoint_bytes(const ModelConfig& model, const Precision& precision) {
  double bytes = 0.0;
  for_each_declaration(model, [&](const ParameterDeclaration& declaration) {
    const std::size_t master = std::max(size_of(precision.master()), size_of(declaration.group.narrowest));
    for (const LogicalTensor& tensor : declaration.tensors)
      bytes += 3.0 * static_cast<double>(master) * static_cast<double>(elements_of(tensor.shape));  // and two moments
  });
  return bytes;
}

namespace {

// Where this rank takes memory, and how much of it.
struct Wish {
  MemoryRoom room;
  bool of_device = true;  // what tensors lie in
  double bytes = 0.0;
};

std::vector<Wish> places_of(Device device) {
  std::vector<Wish> places;
  const bool on_gpu = device.kind == DeviceKind::cuda;
  if (on_gpu) {
    const std::string uuid = gpu::properties(device.index).uuid;
    places.push_back({{fmt::format("GPU {}", uuid), hash_bytes(uuid.data(), uuid.size()),
                       static_cast<double>(gpu::memory_use(device.index).free_bytes)}});
  }
  for (MemoryRoom& room : host_memory_rooms()) places.push_back({std::move(room), !on_gpu});
  return places;
}

// Tensors are taken from the device's memory, batches from the host's. On the CPU both are the same memory.
std::vector<Wish> wishes(Device device, double tensors, double batches) {
  std::vector<Wish> list = places_of(device);
  for (Wish& wish : list)
    wish.bytes = (wish.of_device ? tensors : 0.0) + (device.kind == DeviceKind::cpu || !wish.of_device ? batches : 0.0);
  return list;
}

// Memory that some ranks share.
struct SharedRoom {
  double available = std::numeric_limits<double>::infinity();  // the least that any of them sees
  double wanted = 0.0;                                         // by all of them
  double most = -1.0;                                          // wanted by a single rank,
  int rank = 0;                                                // that rank
};
// By kind of room (a GPU, the host, its control group, the process), then by identity.
using SharedRooms = std::vector<std::map<std::int64_t, SharedRoom>>;

template <class T>
std::vector<T> gather(Communicator& ranks, DType dtype, std::vector<T> own) {
  std::vector<T> all(own.size() * static_cast<std::size_t>(ranks.size()));
  ranks.all_gather(Tensor(own.data(), dtype, {static_cast<std::int64_t>(own.size())}),
                   Tensor(all.data(), dtype, {static_cast<std::int64_t>(all.size())}), Stream{});
  return all;
}

// Collective: who shares what, and what they want of it.
SharedRooms gather_rooms(Communicator& ranks, const std::vector<Wish>& own) {
  std::vector<std::int64_t> identities;
  std::vector<double> available, wanted;
  for (const Wish& wish : own) {
    identities.push_back(static_cast<std::int64_t>(wish.room.identity));
    available.push_back(wish.room.available);
    wanted.push_back(wish.bytes);
  }
  identities = gather(ranks, DType::int64, std::move(identities));
  available = gather(ranks, DType::fp64, std::move(available));
  wanted = gather(ranks, DType::fp64, std::move(wanted));
  SharedRooms rooms(own.size());
  for (std::size_t i = 0; i < identities.size(); ++i) {
    SharedRoom& room = rooms[i % own.size()][identities[i]];
    room.available = std::min(room.available, available[i]);
    room.wanted += wanted[i];
    if (wanted[i] <= room.most) continue;
    room.most = wanted[i];
    room.rank = static_cast<int>(i / own.size());
  }
  return rooms;
}

std::string breakdown(std::initializer_list<std::pair<std::string_view, double>> parts) {
  std::vector<std::string> list;
  for (const auto& [name, bytes] : parts) list.push_back(fmt::format("{} {}", name, human_bytes(bytes)));
  return join(list, ", ");
}

constexpr const char* memory_remedy =
    "look for a mistyped size. For activations and workspace lower train.micro_batch or data.sequence_length, or set "
    "parallel.recompute. Or spread the model over more ranks with parallel.tensor or parallel.pipeline, and its "
    "optimizer with parallel.zero. Or use more hosts or GPUs";

// Wherever the ranks are, and however the model is laid out on them.
void require_least_memory(const LeastMemory& least, double batches, const SharedRooms& rooms) {
  for (const auto& kind : rooms) {
    double wanted = 0.0, available = 0.0;
    for (const auto& [identity, room] : kind) {
      wanted += room.wanted;
      available += room.available;
    }
    if (wanted <= available) continue;
    throw UserError("memory",
                    fmt::format("the ranks together have {} left, and would hold {} at the least in any layout: {}",
                                human_bytes(available), human_bytes(wanted),
                                breakdown({{"weights", least.weights},
                                           {"gradients", least.gradients},
                                           {"optimizer", least.optimizer},
                                           {"activations", least.activations},
                                           {"batches", batches}})),
                    memory_remedy);
  }
}

// Rank 0's, for all: many ranks of a host would count a large model many times at once.
void share(Communicator& ranks, LeastMemory& least) {
  std::array<double, 4> values = {least.weights, least.gradients, least.optimizer, least.activations};
  ranks.broadcast(Tensor(values.data(), DType::fp64, {static_cast<std::int64_t>(values.size())}), 0, Stream{});
  least = {values[0], values[1], values[2], values[3]};
}

// The room that lacks most, if any does.
struct Lack {
  const SharedRoom* room = nullptr;
  std::size_t kind = 0;
};
Lack greatest_lack(const SharedRooms& rooms) {
  Lack worst;
  double most = 0.0;
  for (std::size_t kind = 0; kind < rooms.size(); ++kind)
    for (const auto& [identity, room] : rooms[kind])
      if (room.wanted - room.available > most) {
        most = room.wanted - room.available;
        worst = {&room, kind};
      }
  return worst;
}

}  // namespace

void require_memory(const ModelConfig& model, const ModelRunnerOptions& options, Mesh& mesh, Device device,
                    MemoryUse use) {
  Communicator& ranks = mesh.world();
  const double batches = batch_memory(options, mesh.shape());
  LeastMemory least;
  if (ranks.rank() == 0) least = least_memory(model, options, mesh.shape(), use);
  share(ranks, least);
  require_least_memory(least, batches * ranks.size(),
                       gather_rooms(ranks, wishes(device, least.total() / ranks.size(), batches)));

  ModelRunnerOptions known = options;
  known.layout.zero_group = std::to_string(shard_count(options.layout, mesh));
  MemoryLedger ledger;
  run_agreed(ranks, [&] { ledger = estimate_memory(model, known, mesh.shape(), ranks.rank(), device, use); });
  const std::vector<Wish> own = wishes(device, static_cast<double>(ledger.peak_total()), batches);
  const SharedRooms rooms = gather_rooms(ranks, own);
  const Lack lack = greatest_lack(rooms);
  if (lack.room == nullptr) return;
  const std::string what =
      fmt::format("the ranks on it would hold {}, and it has {} left; rank {} would hold {} at most: {}, batches {}",
                  human_bytes(lack.room->wanted), human_bytes(lack.room->available), lack.room->rank,
                  human_bytes(lack.room->most), ledger.peaks(), human_bytes(batches));
  throw UserError(ranks.broadcast_text(own[lack.kind].room.name, lack.room->rank),
                  ranks.broadcast_text(what, lack.room->rank), memory_remedy);
}

void require_place(const TrainerOptions& options, Mesh& mesh) {
  const std::int64_t first = options.resume ? CheckpointReader(*options.resume).description().step : 0;
  const std::int64_t steps = options.train.total_steps(options.data.sequence_length);
  const std::int64_t left = std::max<std::int64_t>(steps - first, 0);
  const std::int64_t every = options.checkpoint.every > 0 ? options.checkpoint.every : std::max<std::int64_t>(left, 1);
  CheckpointDemand demand;
  demand.bytes = checkpoint_bytes(*options.model, options.precision);
  demand.saves = left == 0 ? 0 : (left - 1) / every + 1;
  demand.keep = options.checkpoint.keep;
  require_place_for_checkpoints(std::filesystem::path(options.run.directory) / "checkpoints", demand, mesh.world());
}

}  // namespace fulmen
