// The version of this build.
#pragma once

namespace fulmen {

const char* version();  // "0.2.0 (commit 1a2b3c4)"

}  // namespace fulmen
