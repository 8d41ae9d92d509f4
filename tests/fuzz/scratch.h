// Shared by the targets: a folder of this process, which readers are pointed at, and the rule that they must keep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "framework/error.h"

namespace fulmen::fuzz {

// A folder that is removed at the end; in $TMPDIR, which scripts/fuzz.sh puts into memory.
const std::filesystem::path& scratch();

// Writes a file below it, anew each time.
std::filesystem::path write(const std::filesystem::path& name, std::string_view bytes);

inline std::string_view as_text(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// A mutated text has another checksum; a hostile text has the right checksum. So a manifest is read twice: as it is,
// and with the line that it would need for its bytes. Empty where there can be none.
std::string with_seal(std::string_view text);

// A reader accepts what it is given, or says what is wrong with it. Anything else that leaves it ends the process, and
// is a finding. True when it accepted.
template <class Read>
bool accepts(Read&& read) {
  try {
    read();
    return true;
  } catch (const UserError&) {
    return false;
  }
}

}  // namespace fulmen::fuzz
