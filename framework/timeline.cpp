// Sums over the intervals of a profiler.
#include "framework/timeline.h"

#include <algorithm>
#include <utility>

#include <fmt/core.h>

namespace fulmen {

namespace {

using Span = std::pair<double, double>;

// Disjoint and in order, clipped to [begin, end].
std::vector<Span> merged(std::vector<Span> spans, double begin, double end) {
  std::ranges::sort(spans);
  std::vector<Span> result;
  for (auto [first, last] : spans) {
    first = std::max(first, begin);
    last = std::min(last, end);
    if (first >= last) continue;
    if (!result.empty() && first <= result.back().second)
      result.back().second = std::max(result.back().second, last);
    else
      result.emplace_back(first, last);
  }
  return result;
}

double length_of(const std::vector<Span>& spans) {
  double length = 0.0;
  for (const auto& [first, last] : spans) length += last - first;
  return length;
}

}  // namespace

TimelineSummary summarize_timeline(std::span<const ProfileInterval> intervals, double begin, double end) {
  std::vector<Span> kernels, transfers, both;
  for (const ProfileInterval& interval : intervals) {
    (interval.communication ? transfers : kernels).emplace_back(interval.begin, interval.end);
    both.emplace_back(interval.begin, interval.end);
  }
  TimelineSummary summary;
  summary.span = end - begin;
  summary.compute = length_of(merged(std::move(kernels), begin, end));
  summary.communication = length_of(merged(std::move(transfers), begin, end));
  const double busy = length_of(merged(std::move(both), begin, end));
  summary.exposed_communication = busy - summary.compute;
  summary.idle = summary.span - busy;
  return summary;
}

std::string chrome_trace_events(std::span<const ProfileInterval> intervals, int rank) {
  std::string events =
      fmt::format(R"({{"name":"process_name","ph":"M","pid":{0},"args":{{"name":"rank {0}"}}}})", rank);
  int lanes = 0;
  for (const ProfileInterval& interval : intervals) lanes = std::max(lanes, interval.lane + 1);
  for (int lane = 0; lane < lanes; ++lane)
    events += fmt::format(
        ",\n"
        R"({{"name":"thread_name","ph":"M","pid":{},"tid":{},"args":{{"name":"{}"}}}})",
        rank, lane, lane == 0 ? std::string("kernels") : fmt::format("communication {}", lane));
  for (const ProfileInterval& interval : intervals)
    events += fmt::format(
        ",\n"
        R"({{"name":"{}","cat":"{}","ph":"X","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f}}})",
        interval.name, interval.communication ? "communication" : "kernel", rank, interval.lane, 1e6 * interval.begin,
        1e6 * (interval.end - interval.begin));
  return events;
}

std::string chrome_trace(std::span<const std::string> events_by_rank) {
  std::string text = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
  for (std::size_t rank = 0; rank < events_by_rank.size(); ++rank) {
    if (rank > 0) text += ",\n";
    text += events_by_rank[rank];
  }
  return text + "\n]}\n";
}

}  // namespace fulmen
