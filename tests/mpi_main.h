// The main of tests that run as several MPI ranks (fulmen_test(... RANKS n)).
#pragma once

#include "parallel/mpi_communicator.h"

namespace fulmen {

// The program's MPI session, and all its ranks. A test on fewer ranks takes a subgroup; the other ranks skip its body.
MpiSession& test_session();
Communicator& test_world();

}  // namespace fulmen
