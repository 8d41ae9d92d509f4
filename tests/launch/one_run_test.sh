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

# A killed run leaves its lock behind; the next run takes it over.
kill -9 $process
wait $process 2>/dev/null
check 'a killed run leaves its lock' test -e run/run.lock
succeed 2 "${train[@]}" --set train.steps=3
check 'the lock is taken over' grep -q "taking over .*run.lock of process $process" err
check 'the lock is given back' test ! -e run/run.lock

# Another process of the same number; a lock that was cut short.
here="$(cat /proc/sys/kernel/random/boot_id) $(readlink /proc/self/ns/pid)"
printf 'host: %s\nmachine: %s\npid: %s\nstarted: 1\njob: ""\nsince: "then"\n' "$(hostname)" "$here" $$ >run/run.lock
succeed 1 "${train[@]}" --set train.steps=4
: >run/run.lock
succeed 1 "${train[@]}" --set train.steps=5
# A lock of another host that is not renewed: an earlier start of the same Slurm job at once.
printf 'host: elsewhere\npid: 1\nstarted: 1\njob: "77"\nsince: "then"\n' >run/run.lock
SLURM_JOB_ID=77 succeed 1 "${train[@]}" --set train.steps=6

# A container with this host's name has processes of its own: what counts is that the lock is renewed.
printf 'host: %s\nmachine: %s\npid: 1\nstarted: 1\njob: ""\nsince: "then"\n' "$(hostname)" 'another pid:[1]' >run/run.lock
(for _ in {1..100}; do sleep 0.2; touch -c run/run.lock; done) &
renewal=$!
run 1 "${train[@]}" --set train.steps=7
check 'a run in another container is not dead' grep -q 'run.directory: .*is in use by process 1 on' err
kill $renewal
wait $renewal 2>/dev/null
rm run/run.lock

# A lock that somebody removed is made again; a lock that another run has by now ends this run, which writes nothing more.
for run in removed taken; do
  "$FULMEN_HERE" "${train[@]}" --set train.steps=1000000 --set run.directory=$run >$run.out 2>$run.err &
  declare $run=$!
done
for attempt in {1..100}; do [[ -e removed/metrics.jsonl && -e taken/metrics.jsonl ]] && break; sleep 0.1; done
rm removed/run.lock
printf 'host: elsewhere\nmachine: other\npid: 4711\nstarted: 1\njob: ""\nsince: "then"\n' >other.lock
cp other.lock taken/run.lock
for attempt in {1..100}; do [[ -e removed/run.lock ]] && ! kill -0 $taken 2>/dev/null && break; sleep 0.1; done
check 'a removed lock is made again' grep -qx "pid: $removed" removed/run.lock
check 'and that is said' grep -q 'removed/run.lock was removed: it is made again' removed.err
wait $taken
check 'a run that lost its folder ends as a mistake' test $? = 2
check 'it names the other' grep -q 'run.directory: taken: was taken over by process 4711 on elsewhere, since then' taken.err
check 'one message' test "$(grep -c '^fulmen: error' taken.err)" = 1
check 'it leaves the lock of the other' cmp taken/run.lock other.lock
check 'and writes neither checkpoint nor verdict' test ! -e taken/verdict.yaml -a -z "$(ls taken/checkpoints 2>/dev/null)"
touch removed/STOP
wait $removed
check 'the first goes on' test $? = 75

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
