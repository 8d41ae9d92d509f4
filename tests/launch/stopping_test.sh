#!/usr/bin/env bash
# Signals and the file STOP: a checkpoint, exit code 75, and the same command goes on.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 400
make_configuration good.yaml corpus
# With a constant rate the number of steps may change, so that a run without an end can be ended.
endless=(--set train.schedule.kind=constant --set train.steps=1000000)

lines() { [[ -e run/metrics.jsonl ]] && wc -l <run/metrics.jsonl || echo 0; }

# Starts a run in the background (RANKS, then arguments) and waits until it has done some steps. Sets `process`.
start() {
  local ranks=$1 before
  shift
  before=$(lines)
  if ((ranks == 1)); then
    "$FULMEN_HERE" train good.yaml "${endless[@]}" "$@" >out 2>err &
  else
    "$MPIEXEC" --allow-run-as-root --oversubscribe -n "$ranks" "$FULMEN_HERE" train good.yaml "${endless[@]}" "$@" >out 2>err &
  fi
  process=$!
  local attempt
  for attempt in {1..300}; do
    (($(lines) > before + 3)) && return
    kill -0 $process 2>/dev/null || break
    sleep 0.1
  done
  fail 'the run did not start' out err
}

# Waits for the run to end with the given code, or one of two.
ended() {
  local attempt
  for attempt in {1..150}; do
    kill -0 $process 2>/dev/null || break
    sleep 0.1
  done
  kill -0 $process 2>/dev/null && { fail "$1: still running after 15 s" err; kill -9 $process; }
  wait $process
  code=$?
  checks=$((checks + 1))
  [[ $code == "$2" ]] || fail "$1: exit code $code instead of $2" out err
  no_one_left "$1"
}

stopped() {
  ended "$1" 75
  check "$1: the verdict" grep -qx 'exit_code: 75' run/verdict.yaml
  check "$1: a checkpoint of the last step" test -e "run/checkpoints/step-$(printf %08d "$(json run/metrics.jsonl step | tail -n 1)")/manifest.yaml"
  check "$1: every step once" diff <(json run/metrics.jsonl step) <(seq "$(lines)")
  check "$1: no error is reported" test "$(grep -c '^fulmen: error' err)" = 0
}

start 4 --set parallel.pipeline=2
kill -USR1 $process
stopped 'SIGUSR1 to mpirun'
check 'the checkpoint can be read' "$FULMEN_HERE" eval --checkpoint run/checkpoints --data corpus --json

start 4 --set parallel.tensor=2
touch run/STOP
stopped 'the file STOP'
check 'STOP is taken away' test ! -e run/STOP

start 1
kill -TERM $process
stopped 'SIGTERM to one rank alone'
start 1
kill -INT $process
stopped 'SIGINT to one rank alone'
start 1
kill -HUP $process
stopped 'SIGHUP to one rank alone'
check 'old checkpoints are pruned' test "$(find run/checkpoints -maxdepth 1 -name 'step-*' | wc -l)" = 3

# A place that the verdict does not get, as on a full disk, changes nothing about the end.
start 1
mkdir -p run/verdict.yaml/inner
kill -USR1 $process
ended 'a verdict that cannot be written' 75
check 'that is said' grep -q 'no verdict is written: .*run/verdict.yaml' err
check 'the checkpoint is there' "$FULMEN_HERE" inspect run/checkpoints --json
refuse 1 run/verdict.yaml 'Directory not empty' -- train good.yaml "${endless[@]}"
rm -r run/verdict.yaml

# Under nohup SIGHUP is ignored.
trap '' HUP
start 1
kill -HUP $process
before=$(lines)
for attempt in {1..50}; do (($(lines) > before + 3)) && break; sleep 0.1; done
check 'SIGHUP under nohup: the run goes on' test "$(lines)" -gt $((before + 3))
kill -USR1 $process
stopped 'SIGUSR1 under nohup'
trap - HUP

# One rank out of four.
start 4
kill -USR1 "$(leftover_processes | tail -n 1)"
stopped 'SIGUSR1 to one rank of four'

# To the end, on yet another layout.
last=$(($(lines) + 5))
succeed 2 train good.yaml --set train.schedule.kind=constant --set train.steps=$last
check 'the verdict of a whole run' grep -qx 'exit_code: 0' run/verdict.yaml
check 'every step once, to the end' diff <(json run/metrics.jsonl step) <(seq $last)
succeed 2 train good.yaml --set train.schedule.kind=constant --set train.steps=$last
check 'a finished run does nothing more' diff <(json run/metrics.jsonl step) <(seq $last)

# A crash between checkpoints: the steps after the last checkpoint are done again.
start 4 --set checkpoint.every=3
kill -9 "$(leftover_processes | head -n 1)"
for attempt in {1..150}; do kill -0 $process 2>/dev/null || break; sleep 0.1; done
wait $process
check 'a crash is no success' test $? != 0
no_one_left 'a killed rank'
last=$(($(lines) + 5))
succeed 4 train good.yaml --set train.schedule.kind=constant --set train.steps=$last
check 'every step once after a crash' diff <(json run/metrics.jsonl step) <(seq $last)

# mpirun does not give the ranks time on SIGTERM; existing checkpoints stay valid, and no process is left.
start 4
kill -TERM $process
for attempt in {1..150}; do kill -0 $process 2>/dev/null || break; sleep 0.1; done
wait $process
check 'a terminated run is no success' test $? != 0
no_one_left 'SIGTERM to mpirun'
check 'the checkpoint before it is valid' "$FULMEN_HERE" inspect run/checkpoints --json

# Ctrl-C reaches all of mpirun's group; mpirun gives the ranks a second. Where that was enough there is a verdict. No
# rank then reports an error, however late the end finds it: the verdict is written when all ranks expect the end. No
# message points at flight records that are not there. Four ranks share a few cores: a second is too short now and then.
saved=0
for try in 1 2 3; do
  rm -rf run
  setsid "$MPIEXEC" --allow-run-as-root --oversubscribe -n 4 "$FULMEN_HERE" train good.yaml "${endless[@]}" >out 2>err &
  process=$!
  for attempt in {1..300}; do (($(lines) > 3)) && break; sleep 0.1; done
  kill -INT -- -$process
  for attempt in {1..150}; do kill -0 $process 2>/dev/null || break; sleep 0.1; done
  wait $process
  no_one_left 'Ctrl-C on mpirun'
  check 'no empty flight folder is pointed at' test "$(grep -c 'holds no flight record' err)" = 0
  grep -qsx 'exit_code: 75' run/verdict.yaml || continue
  saved=$((saved + 1))
  check 'no error where all was saved' test "$(grep -c '^fulmen: error' err)" = 0
  check 'and the log says so' grep -q 'stopped at step .* as asked' err
done
echo "Ctrl-C on mpirun: $saved of 3 runs saved within its second"

# Divergence: a decay that multiplies the weights by a million each step.
for ranks in 1 4; do
  rm -rf diverged
  expect_code 3 $ranks train good.yaml --set train.optimizer.lr=1e3 --set train.optimizer.weight_decay=1e3 --set run.directory=diverged
  check 'the message names the step' grep -q '^fulmen: error.*: step [0-9]*: the loss is' err
  check 'one message' test "$(grep -c '^fulmen: error' err)" = 1
  check 'the verdict' grep -qx 'exit_code: 3' diverged/verdict.yaml
  check 'the advice without a checkpoint' grep -q -- '-> start again with' err
done
rm -rf diverged
succeed 1 train good.yaml --set train.steps=2 --set run.directory=diverged
expect_code 3 1 train good.yaml --set train.optimizer.lr=1e3 --set train.optimizer.weight_decay=1e3 --set run.directory=diverged \
  --allow-change train.optimizer.lr --allow-change train.optimizer.weight_decay --allow-change train.steps
check 'right after a resume not the same checkpoint' grep -q -- '-> diverged/checkpoints/step-00000002 leads there: go back to an older' err

# Files taken out of the run folder in the middle, and the folder itself, come back: nothing that is still to be made is lost.
start 1
rm run/metrics.jsonl run/configuration.yaml
for attempt in {1..100}; do [[ -e run/metrics.jsonl && -e run/configuration.yaml ]] && break; sleep 0.1; done
check 'metrics go on' test -s run/metrics.jsonl
check 'that they were removed is said' grep -q 'run/metrics.jsonl was removed or replaced: it is begun again' err
check 'the configuration is there again' test -s run/configuration.yaml
mv run gone
for attempt in {1..100}; do [[ -s run/metrics.jsonl && -e run/run.yaml && -e run/run.lock ]] && break; sleep 0.1; done
check 'a folder that vanished is said' grep -q 'run: .*configuration.yaml.* vanished from the run folder' err
check 'its lock is made again' test -e run/run.lock
kill -USR1 $process
ended 'a run whose folder vanished' 75
check 'it saves a checkpoint' "$FULMEN_HERE" inspect run/checkpoints --json
check 'a tokeniser or none, but every file' test -s run/run.yaml -a -s run/shard_map.yaml

finish
