// Rings of operations, and their files.
#include "parallel/flight_recorder.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "framework/files.h"
#include "framework/hash.h"

namespace fulmen {
namespace {

using Json = nlohmann::ordered_json;

double microseconds(double seconds) { return std::round(seconds * 1e6) * 1e-6; }

// The properties that the ranks of an operation must agree on.
std::string agreed_part(const FlightEntry& entry) {
  std::string text = fmt::format("{} of {} bytes", name_of(entry.operation), entry.bytes);
  if (entry.operation != FlightOperation::barrier) text += fmt::format(", {}", name_of(entry.dtype));
  if (entry.operation == FlightOperation::all_reduce || entry.operation == FlightOperation::reduce_scatter)
    text += fmt::format(", {}", name_of(entry.reduce));
  if (entry.root >= 0) text += fmt::format(", from rank {}", entry.root);
  return text;
}

void append(CollectiveOrder::Stream& stream, std::string operation) {
  const std::uint64_t parts[] = {stream.hash, hash_bytes(operation.data(), operation.size())};
  stream.hash = hash_bytes(parts, sizeof parts);
  stream.count += 1;
  stream.operations.push_back(std::move(operation));
}

Json entry_json(const FlightEntry& entry, double start_time) {
  Json json = {{"sequence", entry.sequence}, {"operation", name_of(entry.operation)}, {"state", name_of(entry.state)}};
  if (entry.collective != 0) json["collective"] = entry.collective;
  json["bytes"] = entry.bytes;
  json["dtype"] = name_of(entry.dtype);
  if (entry.operation == FlightOperation::all_reduce || entry.operation == FlightOperation::reduce_scatter)
    json["reduce"] = name_of(entry.reduce);
  if (entry.root >= 0) json["root"] = entry.root;
  if (!entry.transfers.empty()) {
    Json list = Json::array();
    for (const FlightTransfer& transfer : entry.transfers)
      list.push_back(
          {{transfer.send ? "to" : "from", transfer.peer}, {"bytes", transfer.bytes}, {"number", transfer.number}});
    json["transfers"] = list;
  }
  json["entered"] = microseconds(start_time + entry.entered);
  if (entry.state == FlightState::done) json["completed"] = microseconds(start_time + entry.completed);
  return json;
}

Json counts_json(const std::map<int, std::uint64_t>& counts) {
  Json json = Json::object();
  for (const auto& [peer, count] : counts) json[std::to_string(peer)] = count;
  return json;
}

}  // namespace

std::string_view name_of(FlightOperation operation) {
  switch (operation) {
    case FlightOperation::all_reduce: return "all_reduce";
    case FlightOperation::reduce_scatter: return "reduce_scatter";
    case FlightOperation::all_gather: return "all_gather";
    case FlightOperation::broadcast: return "broadcast";
    case FlightOperation::exchange: return "exchange";
    case FlightOperation::barrier: return "barrier";
    case FlightOperation::subgroup: return "subgroup";
    case FlightOperation::connect: return "connect";
  }
  throw InternalError("unknown operation");
}

std::string_view name_of(ReduceOp op) {
  switch (op) {
    case ReduceOp::sum: return "sum";
    case ReduceOp::max: return "max";
    case ReduceOp::min: return "min";
  }
  throw InternalError("unknown reduction");
}

std::string_view name_of(FlightState state) {
  switch (state) {
    case FlightState::waiting: return "waiting";
    case FlightState::started: return "started";
    case FlightState::enqueued: return "enqueued";
    case FlightState::done: return "done";
    case FlightState::failed: return "failed";
  }
  throw InternalError("unknown state");
}

FlightRing::FlightRing(std::string name, std::vector<int> ranks, Communicator& communicator,
                       std::chrono::steady_clock::time_point start, bool check_order)
    : name_(std::move(name)),
      ranks_(std::move(ranks)),
      communicator_(communicator),
      start_(start),
      check_order_(check_order),
      slots_(capacity) {}

std::uint64_t FlightRing::enter(FlightEntry entry) {
  const std::lock_guard lock(mutex_);
  entry.sequence = ++operations_;
  const bool ordered = entry.operation != FlightOperation::exchange && entry.operation != FlightOperation::subgroup &&
                       entry.operation != FlightOperation::connect;
  if (ordered) entry.collective = ++collectives_;
  for (FlightTransfer& transfer : entry.transfers)
    transfer.number = ++(transfer.send ? sent_ : received_)[transfer.peer];
  entry.state = FlightState::waiting;
  entry.entered = entry.blocked_since = now();
  if (check_order_) add_to_order(entry);
  Slot& slot = slots_[entry.sequence % capacity];
  slot.entry = std::move(entry);
  return operations_;
}

FlightRing::Slot* FlightRing::find(std::uint64_t sequence) {
  Slot& slot = slots_[sequence % capacity];
  return slot.entry.sequence == sequence ? &slot : nullptr;  // it may have been overwritten
}

void FlightRing::complete(FlightEntry& entry) {
  entry.state = FlightState::done;
  entry.completed = last_completed_ = now();
}

void FlightRing::leave(std::uint64_t sequence, Stream stream) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(sequence);
  if (slot == nullptr) return;
  if (stream.device.kind == DeviceKind::cpu) return complete(slot->entry);
  if (!slot->passed) slot->passed = gpu::Event(stream.device);
  slot->passed.record(stream);
  slot->entry.state = FlightState::enqueued;
  slot->entry.blocked_since = now();
}

void FlightRing::started(std::uint64_t sequence) {
  const std::lock_guard lock(mutex_);
  if (Slot* slot = find(sequence)) slot->entry.state = FlightState::started;
}

void FlightRing::waits(std::uint64_t sequence) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(sequence);
  if (slot == nullptr) return;
  slot->entry.state = FlightState::waiting;
  slot->entry.blocked_since = now();
}

void FlightRing::fails(std::uint64_t sequence) {
  const std::lock_guard lock(mutex_);
  if (Slot* slot = find(sequence)) slot->entry.state = FlightState::failed;
}

void FlightRing::set_name(const std::string& name) {
  const std::lock_guard lock(mutex_);
  name_ = name;
}

std::string FlightRing::name() const {
  const std::lock_guard lock(mutex_);
  return name_;
}

void FlightRing::look_at(Slot& slot) {
  try {
    if (slot.passed.passed()) complete(slot.entry);
  } catch (const Error&) {
    slot.entry.state = FlightState::failed;  // the device has failed; the thread of the step will hear of it, too
  }
}

void FlightRing::look_at_streams() {
  const std::uint64_t oldest = operations_ > capacity ? operations_ - capacity + 1 : 1;
  first_open_ = std::max(first_open_, oldest);
  bool open = false;
  for (std::uint64_t sequence = first_open_; sequence <= operations_; ++sequence) {
    Slot& slot = slots_[sequence % capacity];
    if (slot.entry.state == FlightState::enqueued) look_at(slot);
    open = open || (slot.entry.state != FlightState::done && slot.entry.state != FlightState::failed);
    if (!open) first_open_ = sequence + 1;
  }
}

FlightRing::Snapshot FlightRing::snapshot() {
  const std::lock_guard lock(mutex_);
  look_at_streams();
  Snapshot snapshot{name_, ranks_, operations_, collectives_, sent_, received_, {}};
  for (std::uint64_t sequence = operations_ > capacity ? operations_ - capacity + 1 : 1; sequence <= operations_;
       ++sequence)
    snapshot.entries.push_back(slots_[sequence % capacity].entry);
  return snapshot;
}

FlightRing::Progress FlightRing::progress() {
  const std::lock_guard lock(mutex_);
  look_at_streams();
  Progress progress;
  progress.last_completed = last_completed_;
  for (std::uint64_t sequence = first_open_; sequence <= operations_; ++sequence) {
    const FlightEntry& entry = slots_[sequence % capacity].entry;
    if (entry.state != FlightState::waiting && entry.state != FlightState::enqueued) continue;
    progress.blocked_since = std::min(progress.blocked_since.value_or(entry.blocked_since), entry.blocked_since);
  }
  return progress;
}

void FlightRing::add_to_order(const FlightEntry& entry) {
  if (entry.collective != 0) append(order_.collectives, agreed_part(entry));
  const auto self = communicator_.rank();
  const int own = ranks_[static_cast<std::size_t>(self)];
  for (const FlightTransfer& transfer : entry.transfers) {
    const auto ends = transfer.send ? std::pair(own, transfer.peer) : std::pair(transfer.peer, own);
    if (ends.first == ends.second) continue;
    append(order_.transfers[ends], fmt::format("a transfer of {} bytes, {}", transfer.bytes, name_of(entry.dtype)));
  }
}

CollectiveOrder FlightRing::take_order() {
  const std::lock_guard lock(mutex_);
  CollectiveOrder taken = order_;
  const auto begin_anew = [](CollectiveOrder::Stream& stream) {
    stream.first = stream.count;
    stream.operations.clear();
  };
  begin_anew(order_.collectives);
  for (auto& [ends, stream] : order_.transfers) begin_anew(stream);
  return taken;
}

FlightRecorder::FlightRecorder(int rank, int ranks, bool check_order)
    : rank_(rank),
      ranks_(ranks),
      check_order_(check_order),
      start_(std::chrono::steady_clock::now()),
      start_time_(std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count()) {}

std::shared_ptr<FlightRing> FlightRecorder::add(std::string name, std::vector<int> ranks, Communicator& communicator) {
  const std::lock_guard lock(mutex_);
  return rings_.emplace_back(
      std::make_shared<FlightRing>(std::move(name), std::move(ranks), communicator, start_, check_order_));
}

void FlightRecorder::remove(const FlightRing& ring) {
  const std::lock_guard lock(mutex_);
  std::erase_if(rings_, [&](const auto& held) { return held.get() == &ring; });
}

std::vector<std::shared_ptr<FlightRing>> FlightRecorder::rings() const {
  const std::lock_guard lock(mutex_);
  return rings_;
}

double FlightRecorder::blocked_seconds() const {
  std::optional<double> since;
  double last_completed = 0.0;
  for (const auto& ring : rings()) {
    const FlightRing::Progress progress = ring->progress();
    last_completed = std::max(last_completed, progress.last_completed);
    if (progress.blocked_since) since = std::min(since.value_or(*progress.blocked_since), *progress.blocked_since);
  }
  if (!since) return 0.0;
  const double now = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  return now - std::max(*since, last_completed);
}

void FlightRecorder::cancel() {
  const std::lock_guard lock(mutex_);  // no communicator is destroyed meanwhile
  for (const auto& ring : rings_) ring->communicator().cancel();
}

std::string FlightRecorder::dump(const std::string& reason, const std::string& detail) const {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  const double now = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  Json json = {{"format", "fulmen-flight"},
               {"version", 1},
               {"rank", rank_},
               {"ranks", ranks_},
               {"host", std::string(host)},
               {"pid", getpid()},
               {"reason", reason},
               {"detail", detail},
               {"time", microseconds(start_time_ + now)}};
  Json communicators = Json::array();
  for (const auto& ring : rings()) {
    const FlightRing::Snapshot snapshot = ring->snapshot();
    if (snapshot.operations == 0) continue;
    Json entries = Json::array();
    for (const FlightEntry& entry : snapshot.entries) entries.push_back(entry_json(entry, start_time_));
    communicators.push_back({{"name", snapshot.name},
                             {"ranks", snapshot.ranks},
                             {"operations", snapshot.operations},
                             {"collectives", snapshot.collectives},
                             {"sent", counts_json(snapshot.sent)},
                             {"received", counts_json(snapshot.received)},
                             {"entries", entries}});
  }
  json["communicators"] = communicators;
  return json.dump(1) + "\n";
}

void FlightRecorder::write(const std::filesystem::path& folder, const std::string& reason,
                           const std::string& detail) const {
  write_text_atomically(flight_file(folder, rank_), dump(reason, detail));
}

std::filesystem::path flight_file(const std::filesystem::path& folder, int rank) {
  return folder / fmt::format("rank-{:05}.json", rank);
}

}  // namespace fulmen
