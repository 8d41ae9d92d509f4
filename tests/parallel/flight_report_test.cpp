// The report on records of ranks that are missing, that died, that lag behind, and that wait for each other.
#include "parallel/flight_report.h"

#include <algorithm>
#include <fstream>

#include <gtest/gtest.h>

#include "framework/files.h"
#include "parallel/flight_recorder.h"
#include "tests/framework/expect_error.h"
#include "tests/framework/temporary_folder.h"

namespace fulmen {
namespace {

// The recorders of all ranks of a job, in one process.
class Job {
 public:
  explicit Job(int ranks) {
    std::vector<int> all;
    for (int rank = 0; rank < ranks; ++rank) all.push_back(rank);
    for (int rank = 0; rank < ranks; ++rank) {
      recorders_.push_back(std::make_unique<FlightRecorder>(rank, ranks));
      world_.push_back(recorders_.back()->add("world", all, *self_));
    }
  }

  FlightRing& world(int rank) { return *world_[static_cast<std::size_t>(rank)]; }
  std::shared_ptr<FlightRing> add(int rank, const std::string& name, const std::vector<int>& ranks) {
    return recorders_[static_cast<std::size_t>(rank)]->add(name, ranks, *self_);
  }
  void write(int rank, const std::string& reason = "timeout", const std::string& detail = "") {
    recorders_[static_cast<std::size_t>(rank)]->write(folder_.path(), reason, detail);
  }
  // Lets a record that is written be of another host.
  void move(int rank, const std::string& host) const {
    const std::filesystem::path file = flight_file(folder_.path(), rank);
    std::string text = read_text(file);
    const std::string before = "\"host\": \"";
    const std::size_t begin = text.find(before) + before.size();
    ASSERT_GT(begin, before.size());
    write_text_atomically(file, text.replace(begin, text.find('"', begin) - begin, host));
  }
  FlightReport report(const std::vector<int>& certain = {}) const { return report_flight(folder_.path(), certain); }
  const std::filesystem::path& folder() const { return folder_.path(); }

 private:
  std::unique_ptr<Communicator> self_ = make_self_communicator();
  testing_support::TemporaryFolder folder_;
  std::vector<std::unique_ptr<FlightRecorder>> recorders_;
  std::vector<std::shared_ptr<FlightRing>> world_;
};

FlightEntry all_reduce(std::uint64_t bytes) {
  FlightEntry entry;
  entry.operation = FlightOperation::all_reduce;
  entry.dtype = DType::fp32;
  entry.bytes = bytes;
  return entry;
}

FlightEntry transfer(bool send, int peer, std::uint64_t bytes) {
  FlightEntry entry;
  entry.operation = FlightOperation::exchange;
  entry.bytes = bytes;
  entry.transfers = {{send, peer, bytes, 0}};
  return entry;
}

void finish(FlightRing& ring, const FlightEntry& entry) { ring.leave(ring.enter(entry), {}); }

std::vector<int> blamed(const FlightReport& report) {
  std::vector<int> ranks;
  for (const FlightBlame& blame : report.blamed) ranks.push_back(blame.rank);
  return ranks;
}

TEST(FlightReport, ARankWithoutARecordIsMissing) {
  Job job(4);
  for (const int rank : {0, 1, 3}) {
    finish(job.world(rank), all_reduce(64));
    job.world(rank).enter(all_reduce(4096));
    job.write(rank);
  }
  std::ofstream(job.folder() / "ranks.json") << R"({"ranks": [{"rank": 2, "host": "node7", "pid": 4711}]})";
  const FlightReport report = job.report();
  EXPECT_EQ(report.ranks, 4);
  EXPECT_EQ(report.recorded, (std::vector{0, 1, 3}));
  ASSERT_EQ(blamed(report), std::vector{2});
  EXPECT_EQ(report.blamed[0].last_operation, "all_reduce 1, 64 bytes, fp32, sum on \"world\"");
  for (const char* words : {"rank 2 (pid 4711 on node7) is missing", "all_reduce 1, 64 bytes",
                            "rank 3 waits for rank 2 in all_reduce 2, 4096 bytes"})
    EXPECT_NE(report.verdict.find(words), std::string::npos) << words << " is not in " << report.verdict;
}

TEST(FlightReport, ARankThatWaitsForNobodyLagsBehind) {
  Job job(4);
  const std::vector<int> left = {0, 1}, right = {2, 3};
  // 0 waits for 1 in their group, 2 and 3 wait for both in the world, 1 computes.
  for (const int rank : {0, 1}) {
    finish(job.world(rank), all_reduce(8));
    const auto pair = job.add(rank, "tensor", left);
    finish(*pair, all_reduce(16));
    if (rank == 0) pair->enter(all_reduce(32));
  }
  for (const int rank : {2, 3}) {
    finish(job.world(rank), all_reduce(8));
    finish(*job.add(rank, "tensor", right), all_reduce(16));
    job.world(rank).enter(all_reduce(8));
  }
  for (const int rank : {0, 1, 2, 3}) job.write(rank);
  const FlightReport report = job.report();
  ASSERT_EQ(blamed(report), std::vector{1}) << report.verdict;
  EXPECT_NE(report.blamed[0].what.find("lags behind"), std::string::npos);
  EXPECT_EQ(report.blamed[0].last_operation, "all_reduce 1, 16 bytes, fp32, sum, done on \"tensor\"");
  EXPECT_EQ(report.blamed[0].on_communicators.size(), 2u);
}

TEST(FlightReport, ACutLinkIsNamedByItsHosts) {
  Job job(4);
  for (const int rank : {0, 1, 2, 3}) {
    finish(job.world(rank), all_reduce(64));
    job.world(rank).enter(all_reduce(4096));
    job.write(rank);
    job.move(rank, rank < 2 ? "n1" : "n2");
  }
  const FlightReport report = job.report();
  EXPECT_TRUE(report.blamed.empty());
  for (const char* words :
       {"nothing gets through between n1 and n2", "a network link is cut", "rank 3 waits in all_reduce 2, 4096 bytes"})
    EXPECT_NE(report.verdict.find(words), std::string::npos) << words << " is not in " << report.verdict;
}

TEST(FlightReport, ACutLinkIsNamedWhereOthersHaveGoneOn) {
  // 0 and 1 have completed what 2 has not, and wait for it in the next operation; 0 and 2 are on two hosts.
  Job job(3);
  for (const int rank : {0, 1}) {
    finish(job.world(rank), all_reduce(64));
    job.world(rank).enter(all_reduce(8));
  }
  job.world(2).enter(all_reduce(64));
  for (const int rank : {0, 1, 2}) job.write(rank);
  EXPECT_EQ(job.report().verdict.find("network"), std::string::npos);  // one host has no network
  job.move(2, "n2");
  job.move(0, "n1");
  job.move(1, "n1");
  const FlightReport report = job.report();
  ASSERT_EQ(blamed(report), std::vector{2}) << report.verdict;
  EXPECT_NE(
      report.blamed[0].what.find("inside an operation that all have come to: nothing gets through between n1 and n2"),
      std::string::npos)
      << report.blamed[0].what;
}

TEST(FlightReport, WhoLagsBehindARankThatHasEndedIsNotBlamed) {
  Job job(3);
  for (const int rank : {0, 1}) job.world(rank).enter(all_reduce(64));
  finish(job.world(2), all_reduce(64));
  job.world(2).enter(all_reduce(8));  // what neither of the others has come to
  job.write(1, "signal", "SIGSEGV");
  for (const int rank : {0, 2}) job.write(rank);
  const FlightReport report = job.report();
  ASSERT_EQ(blamed(report), std::vector{1}) << report.verdict;
  EXPECT_EQ(report.blamed[0].what, "was ended by SIGSEGV");
}

TEST(FlightReport, TransfersAreMatchedByTheirNumbers) {
  Job job(3);
  for (int i = 0; i < 2; ++i) {
    finish(job.world(0), transfer(true, 1, 100));
    finish(job.world(1), transfer(false, 0, 100));
    finish(job.world(1), transfer(true, 2, 100));
  }
  finish(job.world(2), transfer(false, 1, 100));
  job.world(0).enter(transfer(true, 1, 100));   // the third, which 1 has not come to
  job.world(1).enter(transfer(false, 2, 100));  // waits for 2, which is elsewhere
  for (const int rank : {0, 1, 2}) job.write(rank);
  EXPECT_EQ(blamed(job.report()), std::vector{2}) << job.report().verdict;
}

TEST(FlightReport, RanksThatWaitForEachOther) {
  Job job(2);
  const std::vector<int> both = {0, 1};
  job.add(0, "data", both)->enter(all_reduce(8));
  job.add(1, "tensor", both)->enter(all_reduce(8));
  job.write(0);
  job.write(1);
  const FlightReport report = job.report();
  EXPECT_TRUE(report.blamed.empty());
  EXPECT_NE(report.verdict.find("the order of their operations differs"), std::string::npos) << report.verdict;
}

TEST(FlightReport, RanksThatFailedOrDied) {
  Job job(4);
  for (const int rank : {0, 1, 2, 3}) finish(job.world(rank), all_reduce(8));
  job.write(0, "asked");
  job.write(1, "failure", "the disk is full");
  job.write(2, "signal", "SIGSEGV");
  const FlightReport report = job.report({3});
  ASSERT_EQ(blamed(report), (std::vector{1, 2, 3}));
  EXPECT_EQ(report.blamed[0].what, "failed: the disk is full");
  EXPECT_EQ(report.blamed[1].what, "was ended by SIGSEGV");
  EXPECT_NE(report.blamed[2].what.find("has ended without a word"), std::string::npos);
}

TEST(FlightReport, ManyOperationsKeepTheLastOnes) {
  Job job(2);
  for (int i = 0; i < 1000; ++i) finish(job.world(0), all_reduce(static_cast<std::uint64_t>(i)));
  const FlightRing::Snapshot snapshot = job.world(0).snapshot();
  EXPECT_EQ(snapshot.operations, 1000u);
  ASSERT_EQ(snapshot.entries.size(), FlightRing::capacity);
  EXPECT_EQ(snapshot.entries.front().sequence, 1000 - FlightRing::capacity + 1);
  EXPECT_EQ(snapshot.entries.back().bytes, 999u);
}

TEST(FlightReport, WhatCannotBeReadIsMissing) {
  Job job(2);
  testing_support::expect_user_error([&] { job.report(); }, {"no flight record"});
  finish(job.world(0), all_reduce(8));
  job.write(0);
  std::ofstream(job.folder() / "rank-00001.json") << "{\"format\": \"fulmen-fl";
  EXPECT_EQ(blamed(job.report()), std::vector{1});
}

std::string record_of(const std::string& rank, const std::string& ranks, const std::string& members = "[0, 1]") {
  return R"({"format": "fulmen-flight", "version": 1, "rank": )" + rank + R"(, "ranks": )" + ranks +
         R"(, "host": "h", "pid": 1, "reason": "timeout", "detail": "", "communicators": [)" +
         R"({"name": "world", "ranks": )" + members +
         R"(, "operations": 0, "collectives": 0, "sent": {}, "received": {}, "entries": []}]})";
}

TEST(FlightReport, NumbersOutOfRangeMakeNoRecord) {
  const testing_support::TemporaryFolder folder;
  const auto write = [&](const std::string& text) { std::ofstream(folder / "rank-00000.json") << text; };
  write(record_of("0", "2"));
  EXPECT_EQ(report_flight(folder.path()).ranks, 2);
  for (const std::string& text :
       {record_of("0", "2147483647"), record_of("0", "4294967298"), record_of("0", "0"), record_of("0", "-1"),
        record_of("2", "2"), record_of("-1", "2"), record_of("0", "18446744073709551615"), record_of("0", "1e99"),
        record_of("0", "2", "[0, 2147483647]"), record_of("0", "2", "[0, -1]"), record_of("0", "\"2\""),
        "{\"a\":" + std::string(300'000, '['), std::string("[]")}) {
    write(text);
    testing_support::expect_user_error([&] { report_flight(folder.path()); }, {"no flight record"});
    EXPECT_LE(flight_records(folder.path(), 1).size(), 1u);
  }
  write(record_of("0", "2"));
  for (const char* places : {"[]", R"({"ranks": 5})", R"({"ranks": [{"rank": "x"}]})", R"({"ranks": [5]})"}) {
    std::ofstream(folder / "ranks.json") << places;
    EXPECT_EQ(report_flight(folder.path()).ranks, 2) << places;
  }
}

// Numbers that are not whole, or too large for their meaning, are not made into others.
TEST(FlightReport, CountsOutOfRangeMakeNoRecord) {
  const testing_support::TemporaryFolder folder;
  const auto write = [&](const std::string& entry, const std::string& sent) {
    std::string text = record_of("0", "2");
    text.replace(text.find("\"entries\": []"), 13, "\"entries\": [" + entry + "]");
    text.replace(text.find("\"sent\": {}"), 10, "\"sent\": {" + sent + "}");
    std::ofstream(folder / "rank-00000.json") << text;
  };
  const std::string entry =
      R"({"operation": "exchange", "state": "waiting", "entered": 1.0, "bytes": 8, "dtype": "fp32")";
  write(entry + R"(, "root": 1, "transfers": [{"to": 1, "bytes": 8, "number": 1}]})", R"("1": 3)");
  EXPECT_EQ(report_flight(folder.path()).recorded, std::vector<int>{0});
  for (const char* rest : {R"(, "root": 1e300})", R"(, "root": 4294967296})", R"(, "collective": -1})",
                           R"(, "collective": 18446744073709551615})", R"(, "bytes": 1.5})",
                           R"(, "transfers": [{"to": 1e300, "bytes": 8, "number": 1}]})",
                           R"(, "transfers": [{"to": 4294967297, "bytes": 8, "number": 1}]})",
                           R"(, "transfers": [{"to": 1, "bytes": -8, "number": 1}]})",
                           R"(, "transfers": [{"from": 1, "bytes": 8, "number": 1e300}]})"}) {
    std::string given = entry;
    if (std::string(rest).starts_with(", \"bytes\"")) given.replace(given.find(", \"bytes\": 8"), 12, "");
    write(given + rest, "");
    testing_support::expect_user_error([&] { report_flight(folder.path()); }, {"no flight record"});
  }
  write("", R"("1": 1e300)");
  testing_support::expect_user_error([&] { report_flight(folder.path()); }, {"no flight record"});
}

// As large a job as a record may claim: the report stays short.
TEST(FlightReport, OfManyMissingRanksTheLowestAreNamed) {
  const testing_support::TemporaryFolder folder;
  std::ofstream(folder / "rank-00000.json") << record_of("0", "1048576");
  const FlightReport report = report_flight(folder.path());
  EXPECT_EQ(report.blamed.size(), 64u);
  EXPECT_EQ(report.more_blamed, 1048575 - 64);
  EXPECT_NE(report.verdict.find("and 1048511 more ranks"), std::string::npos);
  EXPECT_LT(report.verdict.size(), 20'000u);
}

TEST(FlightRecorder, KnowsForHowLongItIsBlocked) {
  const auto self = make_self_communicator();
  FlightRecorder recorder(0, 1);
  const auto ring = recorder.add("world", {0}, *self);
  EXPECT_EQ(recorder.blocked_seconds(), 0.0);
  const std::uint64_t sequence = ring->enter(all_reduce(8));
  EXPECT_GT(recorder.blocked_seconds(), 0.0);
  ring->started(sequence);
  EXPECT_EQ(recorder.blocked_seconds(), 0.0) << "nobody waits for a started operation";
  ring->waits(sequence);
  EXPECT_GT(recorder.blocked_seconds(), 0.0);
  ring->leave(sequence, {});
  EXPECT_EQ(recorder.blocked_seconds(), 0.0);
  recorder.remove(*ring);
  EXPECT_TRUE(recorder.rings().empty());
}

}  // namespace
}  // namespace fulmen
