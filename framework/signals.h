// Stopping politely: SIGUSR1, SIGTERM, SIGINT and SIGHUP ask for a checkpoint and an early end.
#pragma once

namespace fulmen {

// From now on these signals only set a flag; SIGHUP stays ignored where it was (nohup). A second SIGINT ends the
// process at once. Threads started later, and the arithmetic's, never run a handler. oneDNN's fp32 products let the
// stack pointer stand at the start of a heap block. A handler's frame would overwrite the heap there. A thread of its
// own takes the signals instead.
void catch_stop_signals();
// The first signal caught, or 0.
int stop_signal();
// Whether a signal was SIGTERM, with which launchers end the ranks of a job that goes down.
bool told_to_terminate();
// From now on a further stop signal ends the process, as it would have without catch_stop_signals().
void obey_stop_signals();

// From now on SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT wait, up to three seconds, for another thread. It notices
// fatal_signal() and says that its record is written. Then they end the process as they would have before.
void hold_fatal_signals();
// The fatal signal that this process is dying of, or 0.
int fatal_signal();
void let_fatal_signal_go();

}  // namespace fulmen
