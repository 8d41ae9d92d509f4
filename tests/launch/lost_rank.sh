# Shared by the scripts that take a rank away from a job in the middle. Sourced after lib.sh, with `count`, the number of ranks,
# and `timeout_seconds` set, good.yaml made, and in `device` the settings of where to run.

# start LAYOUT...: `count` ranks that train without an end, until they have done some steps. Sets `process` and `ranks`, the
# processes of the ranks in their order.
start() {
  rm -rf run
  "$MPIEXEC" --allow-run-as-root --oversubscribe -n "$count" "$FULMEN_HERE" train good.yaml --set train.schedule.kind=constant \
    --set train.steps=1000000 --set run.timeout=$timeout_seconds "${device[@]}" "$@" >out 2>err &
  process=$!
  local attempt
  for attempt in {1..300}; do
    [[ -e run/metrics.jsonl ]] && (($(wc -l <run/metrics.jsonl) > 3)) && break
    sleep 0.1
  done
  mapfile -t ranks < <(sed -n 's/.*"pid": \([0-9]*\).*/\1/p' run/flight/ranks.json)
  ((${#ranks[@]} == count)) || fail 'the run did not start' out err
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
  for ((rank = 0; rank < count; ++rank)); do
    ((rank == $2)) || check "$1: the record of rank $rank" test -s run/flight/rank-0000$rank.json
  done
  "$FULMEN_HERE" inspect run --json >inspected 2>inspected.err
  check "$1: inspect names the rank" grep -q "\"blamed\":\[{\"rank\":$2,\"what\":\"$3" inspected
  "$FULMEN_HERE" inspect run/flight >inspected 2>>inspected.err
  # With the operation that the message names.
  check "$1: inspect says the same" grep -qF "$(grep '^  its last' err)" inspected
  ((failures == before)) || fail "$1: for the above" err inspected
}
