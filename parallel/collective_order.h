// The check of run.check_collectives: all ranks of each communicator have done the same operations in the same order.
#pragma once

#include "parallel/communicator.h"
#include "parallel/flight_recorder.h"

namespace fulmen {

// Compares what the recorders of all ranks (made to check orders) have entered since the last time. For the collectives
// of each communicator it compares a hash over operation, bytes, dtype, reduction and root. For the transfers between
// two ranks it compares the sender's hash with the receiver's. Where they differ, all ranks throw InternalError that
// names the first communicator, the first operation that differs and what each rank did there. Collective over `ranks`,
// all ranks of the job, which do not record. Costs a message from each rank to rank 0 and back.
void check_collective_order(FlightRecorder& recorder, Communicator& ranks);

}  // namespace fulmen
