#!/usr/bin/env bash
# A rank that is killed, crashes or is stopped in the middle ends the job within the time-out, with one message that names
# it and what it did last; `fulmen inspect` says the same of the flight records. A polite stop leaves none.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/lost_rank.sh"

make_byte_corpus corpus 400
make_configuration good.yaml corpus
count=4 timeout_seconds=4 device=()

start --set parallel.tensor=2
kill -9 "${ranks[2]}"
ended 'kill -9' $((timeout_seconds + 4))
lost 'kill -9' 2 'has ended\|is missing'

start --set parallel.pipeline=2
kill -9 "${ranks[0]}"
ended 'kill -9 of rank 0' $((timeout_seconds + 4))
lost 'kill -9 of rank 0' 0 'has ended\|is missing'

start --set parallel.tensor=2
kill -STOP "${ranks[3]}"
ended 'kill -STOP' $((timeout_seconds + 4))
lost 'kill -STOP' 3 'is missing'
check 'kill -STOP: the message gives the time-out' grep -q "not completed within $timeout_seconds s (run.timeout)" err

start --set parallel.pipeline=4
kill -STOP "${ranks[0]}"
ended 'kill -STOP of rank 0' $((timeout_seconds + 4))
lost 'kill -STOP of rank 0' 0 'is missing'

start
kill -SEGV "${ranks[1]}"
ended 'a crash' $((timeout_seconds + 4))
lost 'a crash' 1 'was ended by SIGSEGV'
check 'a crash: the rank left a record of its own' grep -q '"reason": "signal"' run/flight/rank-00001.json

# Asked to stop, by one rank's SIGTERM: no loss, no records.
start --set parallel.tensor=2
kill -TERM "${ranks[1]}"
ended 'SIGTERM to one rank' 30
check 'a polite stop is one' test "$code" = 75
check 'a polite stop has no message' test "$(grep -c '^fulmen: error' err)" = 0
check 'a polite stop leaves no records' test ! -e run/flight

# The order of all operations is compared in each step, on a layout with every kind of communicator.
succeed 4 train good.yaml --set run.check_collectives=true --set parallel.pipeline=2 --set run.directory=ordered
check 'the start is timed by phase' grep -q 'start-up: device .* MPI .* communicators .* corpus verification .* model allocation .* initialisation' err

finish
