// The arithmetic of shard groups, and their communicators.
#include "parallel/shard_groups.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <numeric>

#include <fmt/format.h>

namespace fulmen {

namespace {

// The number that a text is, or nothing.
std::optional<int> whole_number(const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return {};
  return value;
}

std::string host_name() {
  char name[256] = {};
  FULMEN_CHECK(gethostname(name, sizeof name - 1) == 0, "gethostname failed");
  return name;
}

// Replicas of each node that this rank's group of replicas spans, which must be neighbours.
int replicas_per_node(Communicator& replicas) {
  std::vector<std::string> hosts;
  for (int rank = 0; rank < replicas.size(); ++rank) hosts.push_back(replicas.broadcast_text(host_name(), rank));
  std::vector<int> runs;
  for (std::size_t i = 0; i < hosts.size(); ++i)
    if (i > 0 && hosts[i] == hosts[i - 1])
      ++runs.back();
    else
      runs.push_back(1);
  for (const int run : runs)
    if (run != runs.front()) return 0;
  return runs.front();
}

}  // namespace

std::string zero_group_problem(const std::string& zero_group) {
  if (zero_group == "all" || zero_group == "node") return "";
  const std::optional<int> ranks = whole_number(zero_group);
  return ranks && *ranks >= 1 ? "" : fmt::format("'{}' is neither all, node nor a number of ranks", zero_group);
}

int shard_count(const LayoutConfig& layout, Mesh& mesh) {
  const int replicas = ShardGroups::replicas(mesh);
  if (layout.zero == 0) return 1;
  if (layout.zero_group == "all") return replicas;
  if (layout.zero_group == "node") {
    const std::int64_t mine = replicas_per_node(mesh.along({Axis::sequence, Axis::data}));
    const std::int64_t least = mesh.world().all_reduce(mine, ReduceOp::min);
    const std::int64_t most = mesh.world().all_reduce(mine, ReduceOp::max);
    if (least != most || least == 0)
      throw UserError("parallel.zero_group",
                      "node: the nodes hold unequal numbers of the ranks along data and sequence",
                      "give the number of ranks that shard, or place as many ranks on each node");
    return static_cast<int>(least);
  }
  const int ranks = whole_number(layout.zero_group).value_or(0);
  if (ranks < 1 || replicas % ranks != 0)
    throw UserError("parallel.zero_group",
                    fmt::format("{} does not divide the {} ranks along data and sequence", layout.zero_group, replicas),
                    "choose all, node, or a number that does");
  return ranks;
}

int shard_count(const Mesh& mesh, int shards, const std::vector<Axis>& owned_along) {
  const int all = ShardGroups::replicas(mesh), owners = all / ShardGroups::replicas(mesh, owned_along);
  FULMEN_CHECK(shards >= 1 && all % shards == 0, "{} shards for {} replicas", shards, all);
  // The neighbours are whole sets of owners, each with all its sequence ranks, or they hold at most some sequence ranks
  // of each.
  if (shards % (mesh.size(Axis::sequence) * owners) == 0) return shards / owners;
  return std::gcd(shards, mesh.size(Axis::sequence));
}

ShardGroups::ShardGroups(Mesh& mesh, int shards, const std::vector<Axis>& owned_along) {
  const std::vector<int> members = mesh.members({Axis::sequence, Axis::data}, owned_along);
  const int count = static_cast<int>(members.size()), self = replica(mesh, owned_along);
  FULMEN_CHECK(shards >= 1 && count % shards == 0, "{} shards for {} replicas", shards, count);
  std::vector<int> neighbours, holders;
  for (int r = 0; r < count; ++r) {
    if (r / shards == self / shards) neighbours.push_back(members[static_cast<std::size_t>(r)]);
    if (r % shards == self % shards) holders.push_back(members[static_cast<std::size_t>(r)]);
  }
  shards_ = &mesh.among(neighbours, "shards");
  copies_ = &mesh.among(holders, "copies of shards");
  FULMEN_CHECK(shards_->size() == shards, "{} ranks for {} shards", shards_->size(), shards);
}

int ShardGroups::replica(const Mesh& mesh, const std::vector<Axis>& owned_along) {
  const std::vector<int> members = mesh.members({Axis::sequence, Axis::data}, owned_along);
  return static_cast<int>(std::ranges::find(members, mesh.rank()) - members.begin());
}

int ShardGroups::replicas(const Mesh& mesh, const std::vector<Axis>& owned_along) {
  return static_cast<int>(mesh.members({Axis::sequence, Axis::data}, owned_along).size());
}

}  // namespace fulmen
