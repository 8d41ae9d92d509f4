// Stopping politely: SIGUSR1, SIGTERM and SIGINT ask for a checkpoint and an early end.
#pragma once

namespace fulmen {

// From now on the three signals only set a flag. A second SIGINT ends the process at once. Threads started later, and the
// arithmetic's, never run a handler: oneDNN's fp32 products let the stack pointer stand at the start of a heap block, where
// a handler's frame would overwrite the heap. A thread of its own takes the signals instead.
void catch_stop_signals();
// The first signal caught, or 0.
int stop_signal();
// From now on a further stop signal ends the process, as it would have without catch_stop_signals().
void obey_stop_signals();

}  // namespace fulmen
