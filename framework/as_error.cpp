// Turns the exceptions of the standard library into messages of this program.
#include "framework/as_error.h"

#include <filesystem>
#include <new>
#include <string>

namespace fulmen {

Error as_error(const std::exception& exception) {
  if (const auto* error = dynamic_cast<const Error*>(&exception)) return *error;
  if (const auto* error = dynamic_cast<const std::filesystem::filesystem_error*>(&exception))
    return UserError(error->path1().string(), "the file system says: " + error->code().message(),
                     "see what stands there, and whether it may be changed");
  if (dynamic_cast<const std::bad_alloc*>(&exception) != nullptr)
    return InternalError("out of host memory\n  -> use a smaller micro_batch or sequence_length, or more ranks");
  return InternalError(std::string("unexpected: ") + exception.what());
}

}  // namespace fulmen
