// The progress bar.
#include "framework/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>

#include "framework/text.h"

namespace fulmen {

namespace {

using Seconds = std::chrono::duration<double>;

constexpr Seconds between_redraws{0.1};
constexpr Seconds between_lines{10.0};
constexpr int bar_width = 24;

std::string bar(double fraction) {
  return fmt::format("[{:.<{}}]", std::string(static_cast<std::size_t>(fraction * bar_width), '#'), bar_width);
}

// Standard error is a terminal, or leads to one through mpirun (whoever starts it says so).
bool leads_to_terminal() {
  const char* wish = std::getenv("FULMEN_PROGRESS");
  return isatty(STDERR_FILENO) != 0 || (wish != nullptr && std::string_view(wish) == "bar");
}

std::size_t terminal_columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// `work` is what was done since the start in `elapsed` seconds; it says how long the rest takes.
std::string time_left(std::int64_t work, std::int64_t rest, double elapsed) {
  if (work <= 0 || rest <= 0) return {};
  return ", " + human_duration(elapsed * static_cast<double>(rest) / static_cast<double>(work)) + " left";
}

}  // namespace

Progress::Progress(std::string title, std::int64_t total, bool silent)
    : title_(std::move(title)),
      total_(total),
      silent_(silent),
      terminal_(leads_to_terminal()),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

Progress::~Progress() { finish(); }

void Progress::update(std::int64_t done, const std::string& detail) {
  if (silent_ || finished_) return;
  const bool first = first_ < 0;
  if (first) first_ = done;
  done_ = done;
  detail_ = detail;
  const auto now = std::chrono::steady_clock::now();
  const bool due = now - last_ >= (terminal_ ? between_redraws : between_lines);
  if (!due && !(first && terminal_)) return;
  last_ = now;
  show();
}

void Progress::show() {
  std::string text = title_ + " ";
  if (total_ > 0) {
    const double fraction = std::clamp(static_cast<double>(done_) / static_cast<double>(total_), 0.0, 1.0);
    const double elapsed = Seconds(std::chrono::steady_clock::now() - start_).count();
    if (terminal_) text += bar(fraction) + " ";
    text += fmt::format("{}/{} ({:.0f}%{})", with_thousands(done_), with_thousands(total_), 100.0 * fraction,
                        time_left(done_ - first_, total_ - done_, elapsed));
  } else {
    text += with_thousands(done_);
  }
  if (!detail_.empty()) text += "  " + detail_;
  if (terminal_) {
    text.resize(std::min(text.size(), terminal_columns() - 1));
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
  std::fflush(stderr);
  shown_ = done_;
}

void Progress::finish() {
  if (silent_ || finished_) return;
  finished_ = true;
  if (done_ != shown_) show();
  if (terminal_ && shown_ >= 0) std::fputs("\n", stderr);
}

}  // namespace fulmen
