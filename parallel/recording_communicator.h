// A communicator that enters every operation of another communicator into the flight recorder.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/flight_recorder.h"

namespace fulmen {

// Passes all operations on to `inner`, whatever it moves and how. Its subgroups record, too. `ranks` are the ranks of
// the job that inner's ranks are; all of them in order when it is empty. An operation on host memory is over when its
// call returns, or the wait for it. An operation on a GPU is over when the stream that waits for it gets past it; the
// recorder notices when it looks. The watchdog may call cancel() and abort() from a thread of its own.
std::unique_ptr<Communicator> make_recording_communicator(std::unique_ptr<Communicator> inner,
                                                          std::shared_ptr<FlightRecorder> recorder, std::string name,
                                                          std::vector<int> ranks = {});

}  // namespace fulmen
