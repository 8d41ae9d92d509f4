// The version of this build.
#pragma once

namespace fulmen {

const char* version();  // "0.1.0 (commit 1a2b3c4)"

}  // namespace fulmen
