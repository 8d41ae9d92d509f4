// The version of this build.
#include "launch/version.h"

namespace fulmen {

const char* version() { return FULMEN_VERSION; }

}  // namespace fulmen
