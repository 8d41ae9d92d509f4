#!/usr/bin/env bash
# A run checks before its first step all that it can: the place of checkpoints, its room, and the memory. A save that fails
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

# A run that does not fit the memory is refused within seconds, before any memory is taken.
mistyped=(--set run.directory=too_large --set model.layers=100000 --set model.hidden=1024 --set model.heads=16 --set model.glu=2816)
few_seconds() { ((SECONDS - begun <= 10)); }
for ranks in 1 2; do
  begun=$SECONDS
  refuse $ranks memory left weights gradients optimizer activations 'mistyped size' -- train good.yaml "${mistyped[@]}"
  check 'layers: 100000 is answered within seconds' few_seconds
done
refuse 1 memory weights optimizer activations -- bench step --config good.yaml "${mistyped[@]}"
"$HELPERS/peak_memory" peak "$FULMEN_HERE" train good.yaml "${mistyped[@]}" >out 2>err
check 'hardly any memory was taken for it' test "$(cat peak)" -lt 300000
# Weights that fit, and activations that do not: counted for the layout. A limit of the process stands for a small host.
large=(--set run.directory=too_large --set train.micro_batch=200000 --set train.global_batch=400000)
ulimit -Sv 16000000
for ranks in 1 2; do
  begun=$SECONDS
  refuse $ranks 'left; rank 0 would hold' weights activations workspace batches 'train.micro_batch' -- \
    train good.yaml "${large[@]}"
  check 'a micro-batch that is too large is answered within seconds' few_seconds
done
refuse 1 'ulimit -v of process' workspace -- gradients good.yaml "${large[@]}" --output g.h5
ulimit -Sv unlimited

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
launch() {
  rm -rf run
  "$MPIEXEC" --allow-run-as-root --oversubscribe -n 2 "$FULMEN_HERE" train good.yaml "${endless[@]}" >out 2>err &
  process=$!
}
start() {
  launch
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
# Files that cannot grow stand for a disk that fills up during the run, on one of two ranks.
launch
check 'the first save' said 'checkpoint .* in .* s'
victim=$(leftover_processes | tail -n 1)
prlimit --pid "$victim" --fsize=4096:unlimited
check 'a full disk: saving is tried again' said 'could not be saved, trying again in 5 s'
check 'and training goes on' said 'STEP [0-9]* IS NOT SAVED'
prlimit --pid "$victim" --fsize=unlimited:unlimited
: >err
check 'the next save succeeds where there is room again' said 'checkpoint .* in .* s'
touch run/STOP
ended 'a disk that was full for a while' 75
check 'every checkpoint is whole' "$FULMEN_HERE" inspect run/checkpoints --json

start
touch run/STOP
ended 'a last save that fails' 2
check 'one message' test "$(grep -c '^fulmen: error' err)" = 1
check 'which says what cannot be written' grep -q '^fulmen: error.*checkpoints' err
rm run/checkpoints && mv away run/checkpoints
check 'what was saved before is valid' "$FULMEN_HERE" inspect run/checkpoints --json

finish
