// Errors: what is wrong, where, and what to do about it. One exception type per exit code.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include <fmt/core.h>

#include "framework/exit_code.h"

namespace fulmen {

// Any failure that ends a command. `what()` is the whole message, ready to be shown.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// The user's input is wrong (exit 2): a flag, a configuration value, a file, a checkpoint, a corpus.
class UserError : public Error {
 public:
  // The message reads "<where>: <what>" and, on its own line, "  -> <remedy>". Any part but `what` may be empty.
  UserError(const std::string& where, const std::string& what, const std::string& remedy = {});
};

// A defect of this program or a failing system call (exit 1).
class InternalError : public Error {
 public:
  explicit InternalError(const std::string& message) : Error(ExitCode::internal, message) {}
};

// Training produced NaN or infinity (exit 3).
class DivergedError : public Error {
 public:
  explicit DivergedError(const std::string& message) : Error(ExitCode::diverged, message) {}
};

namespace detail {
[[noreturn]] void throw_check_failed(const char* file, int line, const char* condition, const std::string& message);
}  // namespace detail

// A failed system call: "<what>: <strerror(errno)>" (exit 1).
[[noreturn]] void throw_system_error(const std::string& what);

}  // namespace fulmen

// An invariant of this program. Failing it is a defect (exit 1), never a user's mistake.
//   FULMEN_CHECK(a == b, "shapes differ: {} and {}", a, b);
#define FULMEN_CHECK(condition, ...)                                                                    \
  do {                                                                                                  \
    if (!(condition)) [[unlikely]]                                                                      \
      ::fulmen::detail::throw_check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__)); \
  } while (false)
