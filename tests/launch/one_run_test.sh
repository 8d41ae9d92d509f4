#!/usr/bin/env bash
# One run in a run folder at a time, and no single ranks where a launcher started several.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 100
make_configuration good.yaml corpus
train=(train good.yaml --set train.schedule.kind=constant)

"$FULMEN_HERE" "${train[@]}" --set train.steps=1000000 >first.out 2>first.err &
process=$!
for attempt in {1..100}; do [[ -e run/metrics.jsonl ]] && break; sleep 0.1; done
run 2 "${train[@]}"   # while the first goes on, so without `refuse`, which wants all processes gone
check 'a second run is refused' test "$code" = 2
check 'it is told by whom' grep -q "run.directory: .*is in use by process $process on $(hostname)" err
check 'one message' test "$(grep -c '^fulmen: error' err)" = 1
check 'the lock stays' test -e run/run.lock

# A killed run leaves its lock behind; the next one takes it over.
kill -9 $process
wait $process 2>/dev/null
check 'a killed run leaves its lock' test -e run/run.lock
succeed 2 "${train[@]}" --set train.steps=3
check 'the lock is taken over' grep -q "taking over .*run.lock of process $process" err
check 'the lock is given back' test ! -e run/run.lock

# A process of the same number that is another one; a lock that was cut short.
printf 'host: %s\npid: %s\nstarted: 1\njob: ""\nsince: "then"\n' "$(hostname)" $$ >run/run.lock
succeed 1 "${train[@]}" --set train.steps=4
: >run/run.lock
succeed 1 "${train[@]}" --set train.steps=5
# Of another host, and not renewed: an earlier start of the same Slurm job at once.
printf 'host: elsewhere\npid: 1\nstarted: 1\njob: "77"\nsince: "then"\n' >run/run.lock
SLURM_JOB_ID=77 succeed 1 "${train[@]}" --set train.steps=6

# srun without MPI: each task is a rank of its own job.
export SLURM_PROCID=0 SLURM_STEP_ID=0 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=4
refuse 1 MPI 'knows 1 rank' 'started 4' 'srun --mpi=pmix' -- "${train[@]}" --set train.steps=7
# One process in a batch script, where Slurm's variables tell of the job's tasks.
unset SLURM_STEP_ID SLURM_STEP_NUM_TASKS
succeed 1 "${train[@]}" --set train.steps=7
export SLURM_STEP_ID=4294967291   # the batch step
succeed 1 "${train[@]}" --set train.steps=8
export SLURM_STEP_ID=3 SLURM_STEP_NUM_TASKS=1
succeed 1 "${train[@]}" --set train.steps=9
unset SLURM_PROCID SLURM_STEP_ID SLURM_STEP_NUM_TASKS SLURM_NTASKS

finish
