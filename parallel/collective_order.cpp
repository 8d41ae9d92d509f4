// Comparing the order of operations between ranks: hashes first, the lists only where they differ.
#include "parallel/collective_order.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "framework/error.h"

namespace fulmen {
namespace {

using Json = nlohmann::json;

// One rank's operations of one kind, under a name that is the same on all ranks that must agree.
struct OrderLine {
  std::size_t parties = 0;  // ranks that must have it
  CollectiveOrder::Stream stream;
};

std::map<std::string, OrderLine> own_lines(FlightRecorder& recorder) {
  std::map<std::string, OrderLine> lines;
  for (const auto& ring : recorder.rings()) {
    const CollectiveOrder order = ring->take_order();
    std::string name = fmt::format("\"{}\" of ranks {}", ring->name(), fmt::join(ring->ranks(), ","));
    for (int number = 2; lines.contains(name); ++number)
      name = fmt::format("\"{}\" ({}) of ranks {}", ring->name(), number, fmt::join(ring->ranks(), ","));
    lines[name] = {ring->ranks().size(), order.collectives};
    for (const auto& [ends, stream] : order.transfers)
      lines[fmt::format("{}, transfers from rank {} to rank {}", name, ends.first, ends.second)] = {2, stream};
  }
  return lines;
}

// Texts of all ranks on rank 0.
std::vector<std::string> gather(const std::string& text, Communicator& ranks) {
  auto length = static_cast<std::int64_t>(text.size());
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(ranks.size()));
  ranks.all_gather(Tensor(&length, DType::int64, {1}), Tensor(lengths.data(), DType::int64, {ranks.size()}), {});
  std::vector<std::string> texts;
  std::vector<Transfer> transfers;
  std::string own = text;
  if (ranks.rank() == 0) {
    for (const std::int64_t size : lengths) texts.emplace_back(static_cast<std::size_t>(size), '\0');
    texts[0] = text;
    for (int rank = 1; rank < ranks.size(); ++rank) {
      std::string& theirs = texts[static_cast<std::size_t>(rank)];
      transfers.push_back({Transfer::Direction::receive, rank,
                           Tensor(theirs.data(), DType::uint8, {lengths[static_cast<std::size_t>(rank)]})});
    }
  } else {
    transfers.push_back({Transfer::Direction::send, 0, Tensor(own.data(), DType::uint8, {length})});
  }
  ranks.exchange(transfers, {});
  return texts;
}

struct Report {
  int rank;
  std::uint64_t count, hash, first;
  std::size_t parties;
  std::vector<std::string> operations;  // only in the second round
};

using Reports = std::map<std::string, std::vector<Report>>;

Reports collect(const std::vector<std::string>& texts) {
  Reports reports;
  for (std::size_t rank = 0; rank < texts.size(); ++rank)
    for (const Json& line : Json::parse(texts[rank]))
      reports[line[0].get<std::string>()].push_back(
          {static_cast<int>(rank), line[1].get<std::uint64_t>(), line[2].get<std::uint64_t>(),
           line[3].get<std::uint64_t>(), line[4].get<std::size_t>(),
           line.size() > 5 ? line[5].get<std::vector<std::string>>() : std::vector<std::string>{}});
  return reports;
}

bool agree(const std::vector<Report>& reports) {
  const Report& first = reports.front();
  // A communicator that some have not made yet, and nobody has used, is no difference.
  const bool complete =
      reports.size() == first.parties || std::ranges::all_of(reports, [](const Report& r) { return r.count == 0; });
  return complete &&
         std::ranges::all_of(reports, [&](const Report& r) { return r.count == first.count && r.hash == first.hash; });
}

std::string first_disagreement(const Reports& reports) {
  for (const auto& [name, list] : reports)
    if (!agree(list)) return name;
  return {};
}

std::string operation_at(const Report& report, std::uint64_t number) {
  if (number > report.count) return "nothing";
  return report.operations[number - report.first - 1];
}

// In words: the first operation of this communicator that is not the same everywhere, and what each rank did.
std::string describe(const std::string& name, const std::vector<Report>& reports) {
  std::uint64_t last = 0, number = reports.front().first + 1;
  for (const Report& report : reports) last = std::max(last, report.count);
  const bool all_there = reports.size() == reports.front().parties;
  const auto differs = [&] {
    return !all_there || std::ranges::any_of(reports, [&](const Report& report) {
      return operation_at(report, number) != operation_at(reports.front(), number);
    });
  };
  while (number < last && !differs()) ++number;
  std::string text = fmt::format("the ranks disagree in their operations on {}, from number {} on:", name, number);
  for (const Report& report : reports)
    text += fmt::format("\n  rank {}: {}", report.rank, operation_at(report, number));
  if (!all_there) text += "\n  the others: nothing at all";
  return text;
}

}  // namespace

void check_collective_order(FlightRecorder& recorder, Communicator& ranks) {
  FULMEN_CHECK(recorder.checks_order(), "a recorder that does not check orders");
  const std::map<std::string, OrderLine> lines = own_lines(recorder);
  Json hashes = Json::array();
  for (const auto& [name, line] : lines)
    hashes.push_back({name, line.stream.count, line.stream.hash, line.stream.first, line.parties});
  std::string differing;
  const std::vector<std::string> texts = gather(hashes.dump(), ranks);
  if (ranks.rank() == 0) differing = first_disagreement(collect(texts));
  differing = ranks.broadcast_text(differing, 0);
  if (differing.empty()) return;

  Json own = Json::array();
  if (const auto line = lines.find(differing); line != lines.end())
    own.push_back({differing, line->second.stream.count, line->second.stream.hash, line->second.stream.first,
                   line->second.parties, line->second.stream.operations});
  const std::vector<std::string> lists = gather(own.dump(), ranks);
  std::string message;
  if (ranks.rank() == 0) message = describe(differing, collect(lists).at(differing));
  throw InternalError(ranks.broadcast_text(message, 0));
}

}  // namespace fulmen
