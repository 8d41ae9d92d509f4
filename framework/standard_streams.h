// The three standard streams as a shell or a launcher left them: closed, full, or with a reader that has gone away.
#pragma once

namespace fulmen {

// To be called first. A closed descriptor 0, 1 or 2 is taken, so that no file opened later becomes a standard stream;
// its use fails as before. SIGPIPE and SIGXFSZ are ignored. A write that nobody reads, or beyond the limit of a file's
// size, is then an error where it happens, and not a silent end. Throws InternalError.
void settle_standard_streams();

// Writes what standard output still holds. Throws UserError when this, or a write before, has failed: then a result is
// lost. Text that standard error cannot take is dropped: lines of the log are not worth a run.
void finish_standard_output();

}  // namespace fulmen
