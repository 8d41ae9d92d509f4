// Stopping politely: SIGUSR1, SIGTERM and SIGINT ask for a checkpoint and an early end.
#pragma once

namespace fulmen {

// From now on the three signals only set a flag. A second SIGINT ends the process at once.
void catch_stop_signals();
// The first signal caught, or 0.
int stop_signal();

}  // namespace fulmen
