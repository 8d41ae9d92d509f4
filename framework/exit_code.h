// The exit codes of the `fulmen` program: what a batch script or a launcher may rely on.
#pragma once

namespace fulmen {

enum class ExitCode : int {
  done = 0,      // the command did what was asked
  internal = 1,  // a defect of this program, or a failing system underneath it
  user = 2,      // the user's input: flags, configuration, data, checkpoint
  diverged = 3,  // the loss or a gradient became NaN or infinite
  stopped = 75,  // stopped early with a checkpoint: start me again (EX_TEMPFAIL)
};

}  // namespace fulmen
