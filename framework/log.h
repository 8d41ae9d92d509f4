// Log lines for people, on standard error: time, level, rank, text. Standard output is left to results.
#pragma once

#include <string_view>
#include <utility>

#include <fmt/core.h>

namespace fulmen {

enum class LogLevel { debug, info, warning, error };

// Lines of ranks other than 0 are shown from `warning` on, with their rank. Call once, early.
void configure_logging(int rank, int ranks, LogLevel level = LogLevel::info);
void log_line(LogLevel level, std::string_view text);

template <class... A>
void log_debug(fmt::format_string<A...> format, A&&... a) {
  log_line(LogLevel::debug, fmt::vformat(format, fmt::make_format_args(a...)));
}
template <class... A>
void log_info(fmt::format_string<A...> format, A&&... a) {
  log_line(LogLevel::info, fmt::vformat(format, fmt::make_format_args(a...)));
}
template <class... A>
void log_warning(fmt::format_string<A...> format, A&&... a) {
  log_line(LogLevel::warning, fmt::vformat(format, fmt::make_format_args(a...)));
}

}  // namespace fulmen
