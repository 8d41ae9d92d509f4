// The message and the exit code of any exception.
#pragma once

#include <exception>

#include "framework/error.h"

namespace fulmen {

// An Error as it is. A place that the file system refuses is the user's (exit 2): a folder where a file belongs, or
// missing permissions. Memory that ran out, and any other exception, is exit 1.
Error as_error(const std::exception& exception);

}  // namespace fulmen
