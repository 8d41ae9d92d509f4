// Times of phases, in the order of their first mention.
#include "framework/phase_times.h"

#include <algorithm>

#include <fmt/format.h>

namespace fulmen {

std::pair<std::string, double>& PhaseTimes::entry(const std::string& phase) {
  const auto found = std::ranges::find_if(phases_, [&](const auto& known) { return known.first == phase; });
  return found != phases_.end() ? *found : phases_.emplace_back(phase, 0.0);
}

std::string PhaseTimes::describe() const {
  std::string text;
  for (const auto& [phase, seconds] : phases_)
    text += fmt::format("{}{} {:.2f} s", text.empty() ? "" : ", ", phase, seconds);
  return text;
}

}  // namespace fulmen
