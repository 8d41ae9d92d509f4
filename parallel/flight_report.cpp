// Reading flight records and finding out who waits for whom.
#include "parallel/flight_report.h"

#include <algorithm>
#include <climits>
#include <cstdint>
#include <map>
#include <optional>
#include <set>

#include <fmt/format.h>

#include "framework/error.h"
#include "framework/files.h"
#include "framework/json_document.h"
#include "framework/outside_numbers.h"
#include "parallel/flight_recorder.h"

namespace fulmen {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int most_ranks = 1 << 20;  // of a job
constexpr std::size_t most_blamed = 64;

// Numbers of a record: converted as they are, numbers of another kind or size would become others, or undefined. All
// throw InternalError when it is none or out of range, upon which the record is passed over.
std::uint64_t count(const Json& json) {
  if (!json.is_number_unsigned() || json.get<std::uint64_t>() > std::uint64_t{most_counted})
    throw InternalError("a number out of range");
  return json.get<std::uint64_t>();
}

int whole_number(const Json& json, int least, int most) {
  const bool negative = json.is_number_integer() && !json.is_number_unsigned();
  const std::int64_t value = negative ? json.get<std::int64_t>() : static_cast<std::int64_t>(count(json));
  if (value < least || value > most) throw InternalError("a number out of range");
  return static_cast<int>(value);
}

std::uint64_t count_or_zero(const Json& json, const char* key) { return json.contains(key) ? count(json.at(key)) : 0; }

struct Entry {
  std::string operation, state;
  std::uint64_t collective = 0;
  int root = -1;
  double entered = 0.0, completed = 0.0;
  std::vector<FlightTransfer> transfers;
  std::string text;  // "all_reduce 42, 4096 bytes, fp32, sum"

  bool open() const { return state == "waiting" || state == "enqueued"; }
};

// A communicator as a rank of it saw it.
struct View {
  std::string name;
  std::vector<int> ranks;
  std::uint64_t collectives = 0;
  std::map<int, std::uint64_t> sent, received;
  std::vector<Entry> entries;
};

// Name, ranks, and the number among equal communicators.
using Key = std::tuple<std::string, std::vector<int>, int>;

struct Record {
  int rank = 0, ranks = 0;
  std::string host, reason, detail;
  int pid = 0;
  std::map<Key, View> views;
};

std::string text_of(const Json& json, const Entry& entry) {
  std::string text = entry.operation;
  if (entry.collective != 0) text += fmt::format(" {}", entry.collective);
  if (entry.operation == "barrier" || entry.operation == "subgroup") return text;
  text += fmt::format(", {} bytes, {}", count_or_zero(json, "bytes"), json.value("dtype", ""));
  if (json.contains("reduce")) text += fmt::format(", {}", json.at("reduce").get<std::string>());
  if (entry.root >= 0) text += fmt::format(", from rank {}", entry.root);
  for (const FlightTransfer& transfer : entry.transfers)
    text += fmt::format(", {} rank {} ({})", transfer.send ? "to" : "from", transfer.peer, transfer.number);
  return text;
}

Entry parse_entry(const Json& json) {
  Entry entry;
  entry.operation = json.at("operation").get<std::string>();
  entry.state = json.at("state").get<std::string>();
  entry.collective = count_or_zero(json, "collective");
  if (json.contains("root")) entry.root = whole_number(json.at("root"), -1, most_ranks);
  entry.entered = json.at("entered").get<double>();
  entry.completed = json.value("completed", 0.0);
  if (json.contains("transfers"))
    for (const Json& transfer : json.at("transfers")) {
      const bool send = transfer.contains("to");
      entry.transfers.push_back({send, whole_number(transfer.at(send ? "to" : "from"), 0, most_ranks),
                                 count(transfer.at("bytes")), count(transfer.at("number"))});
    }
  entry.text = text_of(json, entry);
  return entry;
}

std::map<int, std::uint64_t> parse_counts(const Json& json) {
  std::map<int, std::uint64_t> counts;
  for (const auto& [peer, transfers] : json.items()) counts[std::stoi(peer)] = count(transfers);
  return counts;
}

Record parse_record(const Json& json) {
  if (json.at("format") != "fulmen-flight" || json.at("version") != 1)
    throw InternalError("not a flight record of version 1");
  Record record;
  record.ranks = whole_number(json.at("ranks"), 1, most_ranks);
  record.rank = whole_number(json.at("rank"), 0, record.ranks - 1);
  record.host = json.at("host").get<std::string>();
  record.pid = whole_number(json.at("pid"), 0, INT_MAX);
  record.reason = json.at("reason").get<std::string>();
  record.detail = json.at("detail").get<std::string>();
  std::map<std::pair<std::string, std::vector<int>>, int> alike;
  for (const Json& communicator : json.at("communicators")) {
    View view;
    view.name = communicator.at("name").get<std::string>();
    for (const Json& rank : communicator.at("ranks")) view.ranks.push_back(whole_number(rank, 0, record.ranks - 1));
    view.collectives = count(communicator.at("collectives"));
    view.sent = parse_counts(communicator.at("sent"));
    view.received = parse_counts(communicator.at("received"));
    for (const Json& entry : communicator.at("entries")) view.entries.push_back(parse_entry(entry));
    const int number = alike[{view.name, view.ranks}]++;
    record.views.emplace(Key{view.name, view.ranks, number}, std::move(view));
  }
  return record;
}

// A record that cannot be read counts as missing.
std::optional<Json> read_json(const fs::path& path) {
  try {
    return parse_json_object(read_document(path), path.string());
  } catch (const UserError&) {
    return std::nullopt;
  }
}

std::optional<Record> read_record(const fs::path& path) {
  const auto json = read_json(path);
  if (!json) return std::nullopt;
  try {
    return parse_record(*json);
  } catch (const std::exception&) {
    return std::nullopt;  // as good as missing
  }
}

std::uint64_t count_in(const std::map<int, std::uint64_t>& counts, int rank) {
  const auto found = counts.find(rank);
  return found == counts.end() ? 0 : found->second;
}

bool is_record(const fs::path& file) {
  return file.filename().string().starts_with("rank-") && file.extension() == ".json";
}

class Analysis {
 public:
  Analysis(const fs::path& folder, std::vector<int> certain) : certain_(std::move(certain)) {
    std::error_code ignored;
    for (const auto& file : fs::directory_iterator(folder, ignored)) {
      if (!is_record(file.path())) continue;
      if (auto record = read_record(file.path())) {
        ranks_ = std::max(ranks_, record->ranks);
        records_.emplace(record->rank, std::move(*record));
      }
    }
    const auto places = read_json(folder / "ranks.json");
    if (!places) return;
    try {
      for (const Json& place : places->at("ranks"))
        places_[whole_number(place.at("rank"), 0, most_ranks)] = fmt::format(
            " (pid {} on {})", whole_number(place.at("pid"), 0, INT_MAX), place.at("host").get<std::string>());
    } catch (const std::exception&) {
      places_.clear();  // as good as missing
    }
  }

  bool empty() const { return records_.empty(); }

  FlightReport report() {
    find_waits();
    FlightReport report;
    report.ranks = ranks_;
    for (const auto& [rank, record] : records_) report.recorded.push_back(rank);
    for (const auto& of_rank : {&Analysis::ended, &Analysis::lags}) {
      // Where ranks have ended, a rank that lags behind has only been stopped by them.
      if (!report.blamed.empty()) break;
      for (int rank = 0; rank < ranks_; ++rank) {
        const std::string what = (this->*of_rank)(rank);
        if (what.empty()) continue;
        if (report.blamed.size() < most_blamed)
          report.blamed.push_back(blame_of(rank, what));
        else
          ++report.more_blamed;
      }
    }
    report.verdict = verdict(report);
    return report;
  }

 private:
  struct Wait {
    int rank;
    std::string text;  // "all_reduce 42, ... on "data""
    std::set<int> for_ranks;
    std::set<std::string> hosts;  // of all that take part
  };

  // Who has not come to an operation that a rank is in.
  std::set<int> absent(const Key& key, const View& view, const Entry& entry, int self) const {
    std::set<int> missing;
    const auto of = [&](int rank) -> const View* {
      const auto record = records_.find(rank);
      if (record == records_.end()) return nullptr;
      const auto found = record->second.views.find(key);
      return found == record->second.views.end() ? nullptr : &found->second;
    };
    if (entry.collective != 0)
      for (const int rank : view.ranks) {
        const View* other = of(rank);
        if (rank != self && (other == nullptr || other->collectives < entry.collective)) missing.insert(rank);
      }
    for (const FlightTransfer& transfer : entry.transfers) {
      if (transfer.peer == self) continue;
      const View* other = of(transfer.peer);
      const std::uint64_t theirs = other == nullptr ? 0 : count_in(transfer.send ? other->received : other->sent, self);
      if (theirs < transfer.number) missing.insert(transfer.peer);
    }
    return missing;
  }

  std::set<std::string> hosts_of(const View& view, const Entry& entry, int self) const {
    std::set<int> ranks = {self};
    if (entry.collective != 0) ranks.insert(view.ranks.begin(), view.ranks.end());
    for (const FlightTransfer& transfer : entry.transfers) ranks.insert(transfer.peer);
    std::set<std::string> hosts;
    for (const int rank : ranks)
      if (const auto record = records_.find(rank); record != records_.end()) hosts.insert(record->second.host);
    return hosts;
  }

  // The hosts between which nothing gets through. There a rank (any, for -1) is in an operation that all hosts have
  // come to and that is not completed. Empty where there is no such operation.
  std::string cut_link(int rank) const {
    for (const Wait& wait : waits_)
      if ((rank < 0 || wait.rank == rank) && wait.for_ranks.empty() && wait.hosts.size() > 1)
        return fmt::format(
            "nothing gets through between {}: a network link is cut or blocked, or one of them has failed",
            fmt::join(wait.hosts, " and "));
    return {};
  }

  void find_waits() {
    for (const auto& [rank, record] : records_)
      for (const auto& [key, view] : record.views)
        for (const Entry& entry : view.entries) {
          if (!entry.open()) continue;
          inside_.insert(rank);
          std::set<int> missing = absent(key, view, entry, rank);
          // Behind another operation in a stream it may just not have begun: the first operation tells.
          waits_.push_back({rank, fmt::format("{} on \"{}\"", entry.text, view.name), std::move(missing),
                            hosts_of(view, entry, rank)});
          break;
        }
  }

  bool waited_for(int rank) const {
    return std::ranges::any_of(waits_, [&](const Wait& wait) { return wait.for_ranks.contains(rank); });
  }
  bool waits(int rank) const {
    return std::ranges::any_of(waits_, [&](const Wait& wait) { return wait.rank == rank && !wait.for_ranks.empty(); });
  }

  // How this rank has ended; empty when it has not.
  std::string ended(int rank) const {
    const bool known = std::ranges::find(certain_, rank) != certain_.end();
    const auto found = records_.find(rank);
    if (found == records_.end())
      return known ? "has ended without a word: it left no flight record" : "is missing: it left no flight record";
    const Record& record = found->second;
    if (record.reason == "failure") return "failed: " + record.detail;
    if (record.reason == "signal") return "was ended by " + record.detail;
    return known ? "has ended" : "";
  }
  // Why the others cannot go on because of this rank, which is there; empty when it is not to blame.
  std::string lags(int rank) const {
    if (!waited_for(rank) || waits(rank)) return {};
    if (!inside_.contains(rank)) return "lags behind: it is in no operation, or does not get to the next operation";
    const std::string cut = cut_link(rank);
    return fmt::format("lags behind, inside an operation that all have come to{}{}", cut.empty() ? "" : ": ", cut);
  }

  // The last operation of a rank on one communicator: its own record's, else what others could only finish with it.
  std::optional<std::pair<double, std::string>> last_on(const Key& key, int rank) const {
    std::optional<std::pair<double, std::string>> last;
    const auto consider = [&](double time, const std::string& text) {
      if (!last || last->first < time) last = {time, text};
    };
    if (const auto own = records_.find(rank); own != records_.end()) {
      const auto view = own->second.views.find(key);
      if (view == own->second.views.end()) return last;
      for (const Entry& entry : view->second.entries) consider(entry.entered, entry.text + ", " + entry.state);
      return last;
    }
    for (const auto& [other, record] : records_) {
      const auto view = record.views.find(key);
      if (view == record.views.end()) continue;
      for (const Entry& entry : view->second.entries) {
        if (entry.state != "done") continue;
        // A broadcast is over for one rank without the others, except for its root.
        if (entry.collective != 0 && (entry.root < 0 || entry.root == rank)) consider(entry.completed, entry.text);
        for (const FlightTransfer& transfer : entry.transfers)
          if (transfer.peer == rank && !transfer.send)
            consider(entry.completed,
                     fmt::format("sending transfer {} to rank {}, {} bytes", transfer.number, other, transfer.bytes));
      }
    }
    return last;
  }

  FlightBlame blame_of(int rank, const std::string& what) const {
    FlightBlame blame;
    blame.rank = rank;
    blame.what = what;
    std::set<Key> keys;
    for (const auto& [other, record] : records_)
      for (const auto& [key, view] : record.views)
        if (std::ranges::find(view.ranks, rank) != view.ranks.end()) keys.insert(key);
    double latest = 0.0;
    for (const Key& key : keys)
      if (const auto last = last_on(key, rank)) {
        blame.on_communicators.emplace_back(std::get<0>(key), last->second);
        if (last->first <= latest) continue;
        latest = last->first;
        blame.last_operation = fmt::format("{} on \"{}\"", last->second, std::get<0>(key));
      }
    return blame;
  }

  std::string place_of(int rank) const {
    if (const auto known = places_.find(rank); known != places_.end()) return known->second;
    const auto record = records_.find(rank);
    return record == records_.end() ? "" : fmt::format(" (pid {} on {})", record->second.pid, record->second.host);
  }

  // The waits that `chosen` picks, a line each, of the lowest ranks.
  template <class F>
  std::string list_waits(F&& chosen) const {
    constexpr int most = 8;
    std::string text;
    int listed = 0, left_out = 0;
    for (const Wait& wait : waits_) {
      if (!chosen(wait)) continue;
      if (listed == most) {
        ++left_out;
        continue;
      }
      ++listed;
      text += fmt::format("\n  rank {} waits", wait.rank);
      if (!wait.for_ranks.empty()) text += fmt::format(" for rank {}", fmt::join(wait.for_ranks, ", "));
      text += fmt::format(" in {}", wait.text);
    }
    if (left_out > 0) text += fmt::format("\n  and {} more", left_out);
    return text;
  }

  std::string verdict(const FlightReport& report) const {
    std::string text;
    for (const FlightBlame& blame : report.blamed) {
      text += fmt::format("{}rank {}{} {}", text.empty() ? "" : "\n", blame.rank, place_of(blame.rank), blame.what);
      const bool own = records_.contains(blame.rank);
      text += blame.last_operation.empty()
                  ? "\n  nothing is known of its operations"
                  : fmt::format("\n  its last {}operation: {}", own ? "" : "known ", blame.last_operation);
    }
    if (report.more_blamed > 0) text += fmt::format("\nand {} more ranks", report.more_blamed);
    if (!report.blamed.empty()) {
      return text + list_waits([&](const Wait& wait) {
               return std::ranges::any_of(
                   report.blamed, [&](const FlightBlame& blame) { return wait.for_ranks.contains(blame.rank); });
             });
    }
    const bool blocked = std::ranges::any_of(waits_, [](const Wait& wait) { return !wait.for_ranks.empty(); });
    const std::string cut = blocked ? std::string() : cut_link(-1);
    text = blocked ? "the ranks wait for each other: the order of their operations differs"
                   : fmt::format("no rank waits for a rank that has not come to the same operation{}{}",
                                 cut.empty() ? "" : ", but ", cut);
    return text + list_waits([](const Wait&) { return true; });
  }

  std::vector<int> certain_;
  int ranks_ = 0;
  std::map<int, Record> records_;
  std::map<int, std::string> places_;
  std::vector<Wait> waits_;
  std::set<int> inside_;  // ranks that are in an operation
};

}  // namespace

FlightReport report_flight(const fs::path& folder, const std::vector<int>& certain) {
  Analysis analysis(folder, certain);
  if (analysis.empty())
    throw UserError(folder.string(), "holds no flight record", "give the folder `flight` of a run that was cut short");
  return analysis.report();
}

bool holds_flight_records(const fs::path& folder) {
  std::error_code ignored;
  const fs::directory_iterator files(folder, ignored);
  return std::any_of(fs::begin(files), fs::end(files), [](const auto& file) { return is_record(file.path()); });
}

std::vector<std::pair<int, std::string>> flight_records(const fs::path& folder, int ranks) {
  std::vector<std::pair<int, std::string>> found;
  for (int rank = 0; rank < ranks; ++rank)
    if (const auto json = read_json(flight_file(folder, rank))) {
      const auto reason = json->find("reason");
      found.emplace_back(rank, reason != json->end() && reason->is_string() ? reason->get<std::string>() : "");
    }
  return found;
}

}  // namespace fulmen
