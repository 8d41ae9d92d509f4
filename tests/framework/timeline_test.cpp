// Sums over a step's intervals, and the trace that is drawn from them.
#include "framework/timeline.h"

#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace fulmen {
namespace {

TEST(Timeline, TellsHiddenFromExposedCommunication) {
  const std::vector<ProfileInterval> intervals = {
      {"product", 0, false, 1.0, 3.0}, {"norm", 0, false, 3.0, 4.0}, {"reduce", 1, true, 2.0, 5.5},  // hidden until 4
      {"gather", 2, true, 5.0, 6.0},  // exposed, the first half with the other
      {"product", 0, false, 7.0, 8.0},
  };
  const TimelineSummary all = summarize_timeline(intervals, 0.0, 10.0);
  EXPECT_DOUBLE_EQ(all.span, 10.0);
  EXPECT_DOUBLE_EQ(all.compute, 4.0);
  EXPECT_DOUBLE_EQ(all.communication, 4.0);
  EXPECT_DOUBLE_EQ(all.exposed_communication, 2.0);
  EXPECT_DOUBLE_EQ(all.idle, 4.0);
}

TEST(Timeline, CountsOnlyWhatLiesInsideTheSpan) {
  const std::vector<ProfileInterval> intervals = {
      {"a", 0, false, 0.0, 2.0}, {"b", 0, false, 1.0, 1.5}, {"c", 1, true, 5.0, 9.0}};
  const TimelineSummary part = summarize_timeline(intervals, 1.0, 6.0);
  EXPECT_DOUBLE_EQ(part.compute, 1.0);
  EXPECT_DOUBLE_EQ(part.exposed_communication, 1.0);
  EXPECT_DOUBLE_EQ(part.idle, 3.0);
}

TEST(Timeline, ScopesOfTheProfilerBecomeIntervalsAndEntries) {
  Profiler profiler(1e9, 1e9);
  {
    const ProfileScope kernel(&profiler, "product", 1e6, 1e3);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  {
    const ProfileScope transfer = ProfileScope::communication(&profiler, "reduce");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ASSERT_EQ(profiler.intervals().size(), 2u);
  const ProfileInterval& kernel = profiler.intervals()[0];
  const ProfileInterval& transfer = profiler.intervals()[1];
  EXPECT_STREQ(kernel.name, "product");
  EXPECT_FALSE(kernel.communication);
  EXPECT_GE(kernel.end - kernel.begin, 0.002);
  EXPECT_TRUE(transfer.communication);
  EXPECT_LE(kernel.end, transfer.begin);
  EXPECT_EQ(profiler.entries().at("product").calls, 1);
  EXPECT_DOUBLE_EQ(profiler.entries().at("product").floor_seconds, 1e-3);
  profiler.clear();
  EXPECT_TRUE(profiler.intervals().empty());
  EXPECT_TRUE(profiler.entries().empty());
}

TEST(Timeline, TheTraceHoldsEveryRanksIntervals) {
  const std::vector<ProfileInterval> intervals = {{"product", 0, false, 0.001, 0.003},
                                                  {"reduce", 1, true, 0.002, 0.004}};
  const std::vector<std::string> events = {chrome_trace_events(intervals, 0), chrome_trace_events(intervals, 1)};
  const nlohmann::json trace = nlohmann::json::parse(chrome_trace(events));
  int drawn = 0;
  for (const auto& event : trace.at("traceEvents")) {
    if (event.at("ph") != "X") continue;
    ++drawn;
    const bool reduce = event.at("name") == "reduce";
    EXPECT_EQ(event.at("tid"), reduce ? 1 : 0);
    EXPECT_EQ(event.at("cat"), reduce ? "communication" : "kernel");
    EXPECT_DOUBLE_EQ(event.at("ts"), reduce ? 2000.0 : 1000.0);
    EXPECT_DOUBLE_EQ(event.at("dur"), 2000.0);
  }
  EXPECT_EQ(drawn, 4);
}

}  // namespace
}  // namespace fulmen
