#!/usr/bin/env bash
# A rank that is killed, crashes or is stopped in the middle ends the job within the time-out, with one message that names
# it and what it did last; `fulmen inspect` says the same of the flight records. A polite stop leaves none.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 400
make_configuration good.yaml corpus
timeout_seconds=4

# start LAYOUT...: four ranks that train without an end, until they have done some steps. Sets `process` and `ranks`, the
# processes of the ranks in their order.
start() {
  rm -rf run
  "$MPIEXEC" --allow-run-as-root --oversubscribe -n 4 "$FULMEN_HERE" train good.yaml --set train.schedule.kind=constant \
    --set train.steps=1000000 --set run.timeout=$timeout_seconds "$@" >out 2>err &
  process=$!
  local attempt
  for attempt in {1..300}; do
    [[ -e run/metrics.jsonl ]] && (($(wc -l <run/metrics.jsonl) > 3)) && break
    sleep 0.1
  done
  mapfile -t ranks < <(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' run/flight/ranks.json)
  ((${#ranks[@]} == 4)) || fail 'the run did not start' out err
}

# ended WHAT SECONDS: the job must end by then. Sets `code`.
ended() {
  local limit=$((SECONDS + $2))
  while kill -0 $process 2>/dev/null && ((SECONDS < limit)); do sleep 0.1; done
  checks=$((checks + 1))
  kill -0 $process 2>/dev/null && { fail "$1: still running after $2 s" err; kill -9 $process; }
  wait $process
  code=$?
  no_one_left "$1"
}

# lost WHAT RANK WORDS: the job has failed, and the message names the rank, once, as the last of Fulmen's own.
lost() {
  local before=$failures
  check "$1: no success" test "$code" != 0
  check "$1: one message" test "$(grep -c '^fulmen: error' err)" = 1
  check "$1: of the lowest rank that is left" grep -q "^fulmen: error \[rank $((($2 == 0)))\]" err
  check "$1: names the rank" grep -q "^rank $2 (pid ${ranks[$2]} on $(hostname)) $3" err
  check "$1: names its last operation" grep -Eq '^  its last (known )?operation: .* [0-9]+ bytes.* on "[a-z0-9 +]+"' err
  check "$1: nothing of Fulmen's follows" awk '/^fulmen: error/ { said = 1 } said && /^[0-9:]+ (info|warning)|Traceback|terminate called/ { wrong = 1 } END { exit wrong }' err
  local rank
  for rank in 0 1 2 3; do
    ((rank == $2)) || check "$1: the record of rank $rank" test -s run/flight/rank-0000$rank.json
  done
  "$FULMEN_HERE" inspect run --json >inspected 2>inspected.err
  check "$1: inspect names the rank" grep -q "\"blamed\":\[{\"rank\":$2,\"what\":\"$3" inspected
  "$FULMEN_HERE" inspect run/flight >inspected 2>>inspected.err
  # With the operation that the message names.
  check "$1: inspect says the same" grep -qF "$(grep '^  its last' err)" inspected
  ((failures == before)) || fail "$1: for the above" err inspected
}

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
