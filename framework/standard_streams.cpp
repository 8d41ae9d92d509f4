// The effects of a broken standard stream on a command.
#include "framework/standard_streams.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <system_error>

#include "framework/error.h"

namespace fulmen {

namespace {

// With the access that the stream is never used for: reading or writing it still fails with EBADF.
int useless_access(int descriptor) { return descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY; }

}  // namespace

void settle_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (::fcntl(descriptor, F_GETFD) != -1 || errno != EBADF) continue;
    // The lowest free number: those below are taken.
    if (::open("/dev/null", useless_access(descriptor)) != descriptor)
      throw_system_error("a standard stream is closed, and /dev/null cannot take its place");
  }
  for (const int ignored : {SIGPIPE, SIGXFSZ})
    if (::signal(ignored, SIG_IGN) == SIG_ERR) throw_system_error("cannot ignore a signal");
}

void finish_standard_output() {
  errno = 0;
  const bool failed_before = std::ferror(stdout) != 0;
  if (std::fflush(stdout) == 0 && !failed_before) return;
  const int code = errno;  // 0: only an earlier write knew
  throw UserError(
      "standard output",
      "the result could not be written" + (code == 0 ? std::string() : ": " + std::generic_category().message(code)),
      "run the command again with standard output to a place that can take it");
}

}  // namespace fulmen
