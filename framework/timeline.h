// Sums over the intervals of a profiler: how long a step computes, communicates, and waits, and its picture for a
// trace viewer.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "framework/profiler.h"

namespace fulmen {

// Shares of a span of time, in seconds. compute + exposed_communication + idle = span.
struct TimelineSummary {
  double span = 0.0;
  double compute = 0.0;                // some kernel runs
  double communication = 0.0;          // some communication is under way, hidden or not
  double exposed_communication = 0.0;  // some communication is under way, and no kernel runs
  double idle = 0.0;                   // neither
};

// For the intervals between `begin` and `end`. Intervals may overlap, within a lane and between lanes.
TimelineSummary summarize_timeline(std::span<const ProfileInterval> intervals, double begin, double end);

// The intervals as events of the Chrome trace format (a list of JSON objects, separated by commas): one process per
// rank, one thread per lane. Times in the file are microseconds. chrome://tracing and ui.perfetto.dev read the file
// that chrome_trace makes of all ranks' events.
std::string chrome_trace_events(std::span<const ProfileInterval> intervals, int rank);
std::string chrome_trace(std::span<const std::string> events_by_rank);

}  // namespace fulmen
