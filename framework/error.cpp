// Composes the messages of the exception types.
#include "framework/error.h"

#include <cerrno>
#include <system_error>

namespace fulmen {

namespace {

// The place, often a file's name, is one line, whatever the name.
std::string compose(std::string where, const std::string& what, const std::string& remedy) {
  for (std::size_t at = where.find('\n'); at != std::string::npos; at = where.find('\n', at))
    where.replace(at, 1, "\\n");
  return fmt::format("{}{}{}{}{}", where, where.empty() ? "" : ": ", what, remedy.empty() ? "" : "\n  -> ", remedy);
}

}  // namespace

UserError::UserError(const std::string& where, const std::string& what, const std::string& remedy)
    : Error(ExitCode::user, compose(where, what, remedy)) {}

namespace detail {

void throw_check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw InternalError(fmt::format("{}:{}: {} (failed: {})", file, line, message, condition));
}

}  // namespace detail

void throw_system_error(const std::string& what) {
  const int code = errno;
  throw InternalError(fmt::format("{}: {}", what, std::generic_category().message(code)));
}

}  // namespace fulmen
