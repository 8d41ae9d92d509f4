// The joint meaning of a job's flight records: which ranks the others wait for, and what those did last.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace fulmen {

struct FlightBlame {
  int rank = 0;
  std::string what;  // "is missing: it left no flight record", "was ended by SIGABRT", "lags behind: ..."
  // The last operation of the rank, over all communicators and on each of them ("data": "all_reduce 41, 4096 bytes,
  // ..."). For a rank without a record: what others saw it take part in. Empty when nothing is known.
  std::string last_operation;
  std::vector<std::pair<std::string, std::string>> on_communicators;
};

struct FlightReport {
  int ranks = 0;                    // of the job
  std::vector<int> recorded;        // that left a record
  std::vector<FlightBlame> blamed;  // none when no rank waits for another; of very many the lowest
  int more_blamed = 0;              // that are not in the list
  std::string verdict;              // all of it in a few lines for people
};

// Reads the records of a folder (rank-*.json, and ranks.json for the places of those that are missing); what cannot be
// read counts as missing. `certain`: ranks that are known to have ended, whatever the records say. Throws UserError
// when there is no record at all.
FlightReport report_flight(const std::filesystem::path& folder, const std::vector<int>& certain = {});

bool holds_flight_records(const std::filesystem::path& folder);
// Ranks that have left a record so far, and why they wrote it ("timeout", "failure", ...).
std::vector<std::pair<int, std::string>> flight_records(const std::filesystem::path& folder, int ranks);

}  // namespace fulmen
