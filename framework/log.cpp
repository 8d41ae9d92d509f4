// Log lines through spdlog.
#include "framework/log.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <string>

#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include "framework/text.h"

namespace fulmen {

namespace {

spdlog::level::level_enum spdlog_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return spdlog::level::debug;
    case LogLevel::info: return spdlog::level::info;
    case LogLevel::warning: return spdlog::level::warn;
    case LogLevel::error: break;
  }
  return spdlog::level::err;
}

std::string pattern(int rank) {
  // On a terminal a line first erases the progress bar that may stand there.
  const std::string erase = isatty(STDERR_FILENO) != 0 ? "\r\033[K" : "";
  const std::string who = rank == 0 ? "" : "[rank " + std::to_string(rank) + "] ";
  return erase + "%H:%M:%S %-7l " + who + "%v";
}

spdlog::logger& logger() {
  static const std::unique_ptr<spdlog::logger> instance = [] {
    auto made = std::make_unique<spdlog::logger>("fulmen", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern(pattern(0));
    made->flush_on(spdlog::level::debug);
    return made;
  }();
  return *instance;
}

}  // namespace

void configure_logging(int rank, int ranks, LogLevel level) {
  const LogLevel shown = rank == 0 || ranks == 1 ? level : std::max(level, LogLevel::warning);
  logger().set_pattern(pattern(ranks == 1 ? 0 : rank));
  logger().set_level(spdlog_level(shown));
}

void log_line(LogLevel level, std::string_view text) {
  const std::string shown = printable(text);
  logger().log(spdlog_level(level), spdlog::string_view_t(shown.data(), shown.size()));
}

}  // namespace fulmen
