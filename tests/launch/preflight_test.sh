#!/usr/bin/env bash
# A run checks before its first step all that it can: the place of checkpoints and its room. And a save that fails
# in the middle of a run does not end it.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 60
make_configuration good.yaml corpus

# The place of checkpoints.
mkdir -p run
ln -s /nonexistent/scratch run/checkpoints
refuse 1 checkpoints 'cannot be used' -- train good.yaml
refuse 2 checkpoints 'cannot be used' -- train good.yaml
rm run/checkpoints
refuse 1 'checkpoint(s) of' 'are free' checkpoint.keep -- train good.yaml --set train.steps=1000000000000 \
  --set checkpoint.every=1 --set checkpoint.keep=100000000000
no_steps() { [[ ! -e run/metrics.jsonl ]]; }
check 'before the first step' no_steps
succeed 2 train good.yaml --set train.steps=2
check 'nothing is left of the probe' test -z "$(find run -name '.probe*')"

# A save that fails in the middle. said WORD: waits until the run's log says so, at most 60 s.
said() {
  local attempt
  for ((attempt = 0; attempt < 600; ++attempt)); do
    grep -q "$1" err && return
    kill -0 $process 2>/dev/null || break
    sleep 0.1
  done
  return 1
}
endless=(--set train.schedule.kind=constant --set train.steps=1000000000 --set checkpoint.every=20 --set checkpoint.keep=2)
start() {
  rm -rf run
  "$MPIEXEC" --allow-run-as-root --oversubscribe -n 2 "$FULMEN_HERE" train good.yaml "${endless[@]}" >out 2>err &
  process=$!
  check 'the first save' said 'checkpoint .* in .* s'
  mv run/checkpoints away && touch run/checkpoints
  check 'a save that fails is tried again' said 'could not be saved, trying again'
  check 'then training goes on and says so' said 'STEP [0-9]* IS NOT SAVED'
}
ended() {
  wait $process
  code=$?
  checks=$((checks + 1))
  ((code == $2)) || fail "$1: exit code $code instead of $2" err
  no_one_left "$1"
}
start
rm run/checkpoints && mv away run/checkpoints
: >err
check 'the next save succeeds' said 'checkpoint .* in .* s'
touch run/STOP
ended 'only the last save decides' 75
check 'the checkpoint is whole' "$FULMEN_HERE" eval --checkpoint run/checkpoints --data corpus --json
start
touch run/STOP
ended 'a last save that fails' 2
check 'one message' test "$(grep -c '^fulmen: error' err)" = 1
check 'which says what cannot be written' grep -q '^fulmen: error.*checkpoints' err
rm run/checkpoints && mv away run/checkpoints
check 'what was saved before is valid' "$FULMEN_HERE" inspect run/checkpoints --json

finish
