#!/usr/bin/env bash
# Standard streams that are full, closed or without a reader, and what a launcher's environment says wrongly: no result
# is lost in silence, and no run.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 60
make_configuration good.yaml corpus
succeed 1 train good.yaml --set train.steps=2
checkpoint=(--checkpoint run/checkpoints)

# A result that cannot be written. refused_output WORD REDIRECTION COMMAND...
refused_output() {
  local word=$1 redirection=$2
  shift 2
  checks=$((checks + 3))
  (eval "exec $redirection"; exec "$FULMEN_HERE" "$@") 2>err
  code=$?
  ((code == 2)) || fail "exit code $code instead of 2: fulmen $* $redirection" err
  (($(grep -c '^fulmen: error' err) == 1)) || fail "not exactly one message: fulmen $* $redirection" err
  grep -q "standard output.*$word" err || fail "the message does not say '$word': fulmen $* $redirection" err
}
full='No space left'
refused_output "$full" '>/dev/full' eval "${checkpoint[@]}" --data corpus --json
refused_output "$full" '>/dev/full' generate "${checkpoint[@]}" --tokenizer bytes --prompt a --tokens 3
refused_output "$full" '>/dev/full' inspect run
refused_output "$full" '>/dev/full' doctor
refused_output 'could not be written' '>/dev/full' doctor --configuration  # more than one buffer full
refused_output "$full" '>/dev/full' prepare --input corpus.txt --output full --tokenizer bytes
refused_output "$full" '>/dev/full' export "${checkpoint[@]}" --hf exported
refused_output "$full" '>/dev/full' gradients good.yaml --output g.h5
refused_output "$full" '>/dev/full' --help
refused_output "$full" '>/dev/full' train --help
refused_output 'Bad file descriptor' '>&-' doctor --json
checks=$((checks + 1))
mkfifo pipe
exec 7<>pipe 8>pipe 7<&-  # a pipe whose last reader is gone
"$FULMEN_HERE" doctor >&8 2>err
[[ $? == 2 ]] && grep -q 'Broken pipe' err || fail 'a result for no reader' err
exec 8>&-

# Closed descriptors never become a data file, and a run without standard streams trains.
closed() {
  rm -rf run
  "$FULMEN_HERE" train good.yaml --set train.steps=3 <&- >&- 2>&-
}
check 'a run without standard streams' closed
check 'its checkpoint is whole' "$FULMEN_HERE" eval "${checkpoint[@]}" --data corpus --json
check 'its metrics are whole' diff <(json run/metrics.jsonl step) <(seq 3)
no_log_in_files() { ! grep -rlaE 'checkpoint run|start-up:|fulmen: error' run; }
check 'no line of the log is in a file of the run' no_log_in_files

# A reader of the log that goes away, alone and under mpirun: the run goes on to its end.
for ranks in 1 2; do
  rm -rf run
  launcher=()
  ((ranks > 1)) && launcher=("$MPIEXEC" --allow-run-as-root --oversubscribe -n $ranks)
  { timeout 60 "${launcher[@]}" "$FULMEN_HERE" train good.yaml --set train.steps=40 --set checkpoint.every=10 2>&1; echo $? >code; } | head -n 3 >/dev/null
  check "a log without a reader, $ranks rank(s): exit code 0" grep -qx 0 code
  check "a log without a reader, $ranks rank(s): the verdict" grep -qx 'exit_code: 0' run/verdict.yaml
  check "a log without a reader, $ranks rank(s): every step" diff <(json run/metrics.jsonl step) <(seq 40)
done

# A limit of a file's size (SIGXFSZ): a message, not a silent end, and before the first step where no checkpoint fits. In the
# middle of a run it stands for a full disk in preflight_test.sh.
limited() {
  rm -rf run
  (ulimit -f "$1"; exec "$FULMEN_HERE" train good.yaml --set train.steps=2) >out 2>err
  code=$?
  ((code == 2)) && grep -q "^fulmen: error.*$2" err
}
check 'a limit of the size of files' limited 16 'a file may have 16.0 KiB here (ulimit -f)'
check 'before the first step' test ! -e run/metrics.jsonl
size=$(stat -c %s corpus.txt)
check 'a corpus beyond the limit is told of' test "$size" -gt 1024
(ulimit -f 1; exec "$FULMEN_HERE" prepare --input corpus.txt --output limited --tokenizer bytes) >out 2>err
check 'by a message, and whole or not at all' test $? = 2 -a "$(grep -c '^fulmen: error.*limited' err)" = 1 -a ! -e limited

# A launcher's variables that are no numbers, and processes that each think they are alone.
misled() {
  local word=$1
  shift
  checks=$((checks + 1))
  env "$@" "$FULMEN_HERE" eval "${checkpoint[@]}" --data corpus >out 2>err
  code=$?
  ((code == 2)) && grep -q "^fulmen: error.*$word" err || fail "exit code $code: $*" err
}
rm -rf run
succeed 1 train good.yaml --set train.steps=2
misled OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_RANK=first
misled OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_SIZE=99999999999
misled PMI_RANK PMI_RANK=1.5
misled SLURM_STEP_ID SLURM_PROCID=0 SLURM_STEP_ID=batch
misled SLURM_CPUS_ON_NODE SLURM_CPUS_ON_NODE=many
misled '1 rank.*started 3' SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_NTASKS=3 SLURM_STEP_NUM_TASKS=3 SLURM_PROCID=0
check 'the message says how to start' grep -q 'srun --mpi=pmix' err

finish
