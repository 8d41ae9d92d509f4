#!/usr/bin/env bash
# The scripts of slurm/, as they are, on a real Slurm of two virtual nodes with two cores each: a run through a time limit
# and a requeue has the losses of a run that was left alone, and so has a run whose node failed or whose ranks did not start at
# first; mistakes and runs without progress are not repeated.
#
# FULMEN (the program) and SOURCE (the source tree) are given by CTest. Ends with 77 where such a cluster cannot be had.
# All of it lives in namespaces of its own, so that nothing outlives this script, however it ends.
set -u
export LC_ALL=C
: "${FULMEN:?}" "${SOURCE:?}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=cluster.sh
source "$here/cluster.sh"

# All inside die with this script: by its trap, or by the kernel's hand if it is killed.
namespaces=(setpriv --pdeathsig KILL unshare --mount --uts --ipc --pid --fork --kill-child --mount-proc)
skip() {
  echo "skipped: $1"
  exit 77
}
if [[ ${1:-} != inside ]]; then
  [[ $(id -u) == 0 ]] || skip 'only root can start a Slurm of virtual nodes'
  missing=$(cluster_missing)
  [[ -z $missing ]] || skip "no $missing here (apt-get install slurm-wlm munge)"
  "${namespaces[@]}" true 2>/dev/null || skip 'namespaces are not permitted here'
  mountpoint -q /sys/fs/cgroup || skip 'nothing is mounted on /sys/fs/cgroup, which slurmd needs'
  trap 'kill -9 "$cluster" 2>/dev/null; wait; rm -rf "$folder" "$folder.out"' EXIT
  trap 'exit 1' INT TERM
  # Open MPI's start-up under Slurm's PMIx crashes or hangs in about one launch of a hundred on this kind of cluster, before
  # any code of this project runs (open-mpi/ompi issue 12495 looks alike). Only a failure that shows a crash or ran out of
  # time is tried once more, and said; anything else fails at once.
  for attempt in first second; do
    folder=$(mktemp -d /tmp/fulmen-slurm-XXXXXX)
    timeout -k 5 300 "${namespaces[@]}" bash "$here/slurm_test.sh" inside "$folder" >"$folder.out" 2>&1 &
    cluster=$!
    code=0
    wait "$cluster" || code=$?
    cat "$folder.out"
    crashed=$(grep -ciE 'segmentation fault|signal 11|signal: aborted' "$folder.out")
    rm -rf "$folder" "$folder.out"
    [[ $code == 0 ]] && exit 0
    echo "the $attempt attempt failed with code $code, lines that show a crash: $crashed"
    [[ $crashed != 0 || $code == 124 || $code == 137 ]] || exit "$code"
  done
  exit "$code"
fi

folder=$2
cd "$folder" || exit 1
# Another Slurm or MPI job around this test is none of its business.
for name in $(compgen -e | grep -E '^(SLURM|SBATCH|SRUN|SALLOC|OMPI|PMIX|PMI|OMP|FULMEN_|RANKS_|CPUS_|MPI_LAUNCH)'); do unset "$name"; done
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo   # both nodes are this machine
export OMPI_MCA_mpi_yield_when_idle=1                                  # and share its cores

failures=0
checks=0
fail() {
  failures=$((failures + 1))
  echo "FAILED: $1"
  shift
  local file
  for file in "$@"; do
    [[ -s $file ]] && echo "  --- $file" && tail -n 40 "$file" | sed 's/^/  | /'
  done
}
# check WHAT LOG COMMAND...: the command must succeed; else the log is shown.
check() {
  local what=$1 log=$2
  shift 2
  checks=$((checks + 1))
  "$@" >check.out 2>&1 || fail "$what" check.out "$log"
}

# submit NAME [SBATCH OPTIONS...] -- ARGUMENTS...: a job of slurm/$script on two nodes with two ranks each; its log is NAME.log
# and its number is left in `job`.
script=train.sh
submit() {
  local name=$1 options=()
  shift
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  job=$(sbatch --parsable --job-name="$name" --output=%x.log --nodes=2 --ntasks-per-node=2 --cpus-per-task=1 \
    "${options[@]}" "$SOURCE/slurm/$script" "$@") || fail "$name: sbatch"
}

# field JOB NAME: of `scontrol show job`.
field() { scontrol show job -o "$1" | tr ' ' '\n' | sed -n "s/^$2=//p" | head -n 1; }

# wait_until SECONDS COMMAND...
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.1
  done
}
in_state() { [[ $(field "$1" JobState) =~ ^($2)$ ]]; }
ended() { in_state "$1" 'COMPLETED|FAILED|TIMEOUT|CANCELLED|NODE_FAIL'; }
says() { grep -qs -e "$2" "$1"; }
has_lines() { [[ -e $1 ]] && (($(wc -l <"$1") >= $2)); }

# outcome JOB NAME STATE CODE RESTARTS: how a job must end, within a minute.
outcome() {
  wait_until 60 ended "$1" || fail "$2: still $(field "$1" JobState)" "$2.log"
  check "$2 ends as $3 with code $4 after $5 restarts" "$2.log" \
    diff <(echo "$3 $4 $5") <(echo "$(field "$1" JobState) $(field "$1" ExitCode) $(field "$1" Restarts)")
}

# start_again JOB NAME: Slurm lets a requeued job wait for two minutes; the test does not.
start_again() {
  wait_until 40 in_state "$1" PENDING || fail "$2: not requeued but $(field "$1" JobState)" "$2.log"
  wait_until 40 eval "! grep -qs '^slurmstepd: \\[$1\\.' /proc/[0-9]*/cmdline" || fail "$2: its steps are still there" "$2.log"
  wait_until 60 begun_now "$1" || fail "$2: does not start again" "$2.log"
}
# Asks again: what is asked while the job still comes to its end is forgotten.
begun_now() {
  scontrol update JobId="$1" StartTime=now >/dev/null 2>&1
  sleep 2
  ! in_state "$1" PENDING
}

# losses RUN: step and loss of every logged step, as written.
losses() { sed -n 's/^{"step":\([0-9]*\),.*"loss_nats":\([^,}]*\).*/\1 \2/p' "$1/metrics.jsonl"; }
same_losses() { diff <(losses "$1") <(losses "$2") && (($(losses "$1" | wc -l) == steps)); }

# ranks RUN: the processes that train into a run folder.
ranks() {
  local process
  for process in /proc/[0-9]*; do
    [[ $(readlink "$process/exe") == "$program" ]] && tr '\0' '\n' <"$process/cmdline" 2>/dev/null | grep -qx "run.directory=$1" &&
      basename "$process"
  done
}

all_up() { [[ -e $1/up-0 && -e $1/up-1 && -e $1/up-2 && -e $1/up-3 && ($1 == starting || -e $1/configuration.yaml) ]]; }
# Whether USR1 waits at all of the halted ranks: bit 9 of what the kernel lists as pending.
all_signalled() {
  local process
  for process in "${halted[@]}"; do grep -q '^ShdPnd:.*[2367abef]..$' "/proc/$process/status" || return; done
}

program=$(realpath "$FULMEN")
cluster_up "$folder/cluster" 2 2 || exit 1
echo "cluster up after $SECONDS s"

awk 'BEGIN {
  srand(7); split("ship harbour captain lantern river mountain letter garden winter silver", words, " ")
  for (i = 1; i <= 3000; ++i) printf "The %s by the %s.%s", words[1 + int(rand() * 10)], words[1 + int(rand() * 10)], i % 5 ? " " : "\n"
}' >text.txt
"$FULMEN" prepare --input text.txt --output corpus --tokenizer bytes >prepare.log 2>&1 || fail 'prepare' prepare.log
steps=60
cat >small.yaml <<END
model: {family: transnormer, layers: 2, hidden: 64, heads: 4, glu: 128, vocabulary: 257}
parallel: {data: 2, tensor: 2}
data: {path: corpus, sequence_length: 128}
train:
  steps: $steps
  global_batch: 8
  micro_batch: 2
  optimizer: {lr: 1e-2}
  schedule: {kind: cosine, warmup_steps: 5, min_lr: 1e-3}
checkpoint: {every: 0}
run:
  seed: 3
  "directory": >-   # directory: elsewhere
    alone
END

# A program that stands in for Fulmen: it counts USR1 in every rank, and then does as the run's name says.
cat >stand_in <<'END'
#!/usr/bin/env bash
[[ $1 == --version ]] && echo 'stand-in' && exit
for word; do [[ $word == run.directory=* ]] && run=${word#*=}; done
[[ ${!#} == run.directory && ${@: -2:1} == --print ]] && echo "$run" && exit
verdict() { printf 'exit_code: %s\njob: "%s"\nattempt: "%s"\n' $1 $SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0} >"$run/verdict.yaml"; }
trap 'echo USR1 >>"$run/heard-$SLURM_PROCID"' USR1
[[ $run == killed ]] && trap '' TERM
[[ $run == killed && -n ${SLURM_RESTART_COUNT:-} && $SLURM_PROCID == 0 ]] && verdict 0
[[ $run == killed && -n ${SLURM_RESTART_COUNT:-} ]] && exit
sleep 0.3
touch "$run/up-$SLURM_PROCID"
if [[ $run == starting ]]; then
  until [[ -e $run/STOP ]]; do sleep 0.1; done
  verdict 0
  exit
fi
((SLURM_PROCID > 0)) || touch "$run/configuration.yaml"
[[ $run == killed ]] && mkdir -p "$run/checkpoints/step-00000007" && touch "$run/checkpoints/step-00000007/manifest.yaml"
for i in {1..1500}; do
  sleep 0.1
  [[ $run == killed || ! -e $run/end ]] || break
done
((SLURM_PROCID > 0)) || verdict 75
exit 75
END
chmod +x stand_in

# 1. A run that its time limit cuts. To be cut in the middle on any machine, its ranks are halted until the signal is there.
submit cut --time=1 --signal=B:USR1@5 -- small.yaml --set run.directory=cut
cut=$job
# 2. A run that the time limit kills, without a verdict but with a checkpoint.
FULMEN=$folder/stand_in submit killed --time=1 --signal=B:USR1@5 -- small.yaml --set run.directory=killed
killed=$job

# The signal's lead is longer than the whole job.
FULMEN=$folder/stand_in submit hasty --time=3 --signal=B:USR1@300 -- small.yaml --set run.directory=hasty
hasty=$job

wait_until 40 has_lines cut/metrics.jsonl 1 || fail 'the run does not start' cut.log
mapfile -t halted < <(ranks cut)
wait_until 40 has_lines cut/metrics.jsonl 15 || fail 'the run does not go on' cut.log
kill -STOP "${halted[@]}"
check 'the run has four ranks' cut.log test ${#halted[@]} = 4
check 'the run is halted in the middle' cut.log test "$(losses cut | wc -l)" -lt $steps
echo "halted at step $(losses cut | wc -l) after $SECONDS s"

# 3. Meanwhile: the run left alone, its run folder taken from the file.
FULMEN_API_KEY=hidden01 OMP_SECRET_TOKEN=hidden OMP_COPY='a hidden01 copy' NCCL_PROXY=https://me:hidden@host/ \
  UCX_NOTE=hf_hiddenhiddenhidden submit alone -- small.yaml
outcome "$job" alone COMPLETED 0:0 0
check 'every step once' alone.log diff <(losses alone | cut -d ' ' -f 1) <(seq $steps)
# shellcheck disable=SC2016 # awk's variables
check 'the loss falls' alone.log awk '{ if (NR == 1) first = $2 } END { exit !($2 < 0.7 * first) }' <(losses alone)
srun --mpi=list 2>&1 | grep -qw pmix && found=pmix || found=mpirun
check "$found is found and named" alone.log says alone.log "MPI through $found"
check 'two nodes' alone.log says alone.log '4 ranks x 1 threads on n\[1-2\]'
check 'one run folder is named' alone.log says alone.log 'run folder alone,'
record=alone/environment/job-$job-attempt-0.txt
for line in "version: fulmen .*commit" 'resumes_from: none' 'nodes: n1 n2' "SLURM_JOB_ID=$job" 'OMP_NUM_THREADS=1' 'open files' \
  "command: .*'train' 'small.yaml'"; do
  check "the environment is recorded: $line" "$record" says "$record" "$line"
done
check 'no secrets are recorded' "$record" test "$(grep -c hidden "$record")" = 0
check 'what is left out is said' "$record" test "$(grep -c '^\(OMP_COPY\|NCCL_PROXY\|UCX_NOTE\)=(left out' "$record")" = 3
echo "a run alone done after $SECONDS s"

# 4. Mistakes.
sed 's/micro_batch/micro_bacth/' small.yaml >wrong.yaml
submit mistake -- wrong.yaml --set run.directory=mistake
mistake=$job
submit missing -- nowhere.yaml
missing=$job
mkdir ranks && printf 'exit_code: 75\njob: "99999"\nattempt: "0"\n' >ranks/verdict.yaml && touch ranks/STOP   # of another job
submit ranks -- small.yaml --set run.directory=ranks --set parallel.tensor=4
outcome "$job" ranks FAILED 2:0 0
check 'the verdict of another job is not believed' ranks.log says ranks.log 'ended: verdict none'
check 'and what belongs to it stays' ranks.log test -e ranks/verdict.yaml -a -e ranks/STOP
outcome "$mistake" mistake FAILED 2:0 0
outcome "$missing" missing FAILED 2:0 0
check 'the mistake is named' mistake.log says mistake.log 'micro_bacth'
check 'the missing file is named' missing.log says missing.log 'nowhere.yaml: no such file'
echo "mistakes done after $SECONDS s"

# 5. Signals reach each rank once; a verdict that asks for more is not believed without a checkpoint.
FULMEN=$folder/stand_in submit counted -- small.yaml --set run.directory=counted
wait_until 20 all_up counted || fail 'the stand-in does not start' counted.log
scancel --batch --signal=USR1 "$job"
wait_until 20 says counted.log 'USR1 to the ranks' || fail 'the signal is not seen' counted.log
sleep 1
touch counted/end
outcome "$job" counted FAILED 1:0 0
check 'every rank hears USR1 once' counted.log test "$(cat counted/heard-{0,1,2,3})" = $'USR1\nUSR1\nUSR1\nUSR1'
check 'the reason is said' counted.log says counted.log 'no new checkpoint'
FULMEN=$folder/stand_in submit starting -- small.yaml --set run.directory=starting
wait_until 20 all_up starting || fail 'the stand-in does not start' starting.log
scancel --batch --signal=USR1 "$job"
outcome "$job" starting COMPLETED 0:0 0
check 'ranks that do not listen yet are not sent USR1' starting.log test -z "$(ls starting/heard-* 2>/dev/null)"

# 6. A cancelled run saves a checkpoint, and stays cancelled.
submit cancelled -- small.yaml --set run.directory=cancelled --set train.steps=100000
wait_until 30 has_lines cancelled/metrics.jsonl 3 || fail 'the run does not start' cancelled.log
scancel "$job"
outcome "$job" cancelled CANCELLED 75:0 0
check 'a checkpoint is there' cancelled.log test -n "$(find cancelled/checkpoints -name manifest.yaml)"

# 7. The file STOP ends a run for good once its job may not be requeued; three starts without progress are enough.
submit ended -- small.yaml --set run.directory=ended --set train.steps=100000
wait_until 30 has_lines ended/metrics.jsonl 3 || fail 'the run does not start' ended.log
scontrol update JobId="$job" Requeue=0
touch ended/STOP
outcome "$job" ended FAILED 75:0 0
check 'the way on is said' ended.log says ended.log 'submit it again'
mkdir -p guarded/environment
for attempt in 0 1 2; do echo 'resumes_from: none' >"guarded/environment/job-$((job + 1))-attempt-$attempt.txt"; done
submit guarded -- small.yaml --set run.directory=guarded
outcome "$job" guarded FAILED 1:0 0
check 'three attempts are enough' guarded.log says guarded.log 'three attempts'
wait_until 40 says hasty.log 'hardly longer than the signal.s lead' || fail 'a time limit within the lead is not warned of' hasty.log
touch hasty/end
outcome "$hasty" hasty FAILED 1:0 0
echo "signals done after $SECONDS s"

# 1. goes on: the signal, the checkpoint, the requeue, the same losses.
wait_until 50 says cut.log 'the time limit is near' || fail 'no signal before the time limit' cut.log
wait_until 5 all_signalled || fail 'USR1 does not reach every rank' cut.log
kill -CONT "${halted[@]}"
echo "the time limit's signal after $SECONDS s"
start_again "$cut" cut
outcome "$cut" cut COMPLETED 0:0 1
check 'the same losses, every step once' cut.log same_losses alone cut
check 'two attempts in one log' cut.log test "$(grep -c 'attempt [01] of job' cut.log)" = 2
check 'both attempts are recorded' cut.log test "$(find cut/environment -name "job-$cut-attempt-[01].txt" | wc -l)" = 2
check 'the second resumes' cut.log says "cut/environment/job-$cut-attempt-1.txt" 'resumes_from: step-'
echo "resumed and done after $SECONDS s"

# 8. Without PMIx in this Slurm, mpirun takes over.
mkdir shim
cat >shim/srun <<END
#!/usr/bin/env bash
[[ \$* == --mpi=list ]] && printf 'MPI plugin types are...\n\tnone\n\tpmi2\n' && exit
exec $(command -v srun) "\$@"
END
chmod +x shim/srun
PATH=$folder/shim:$PATH submit fallback -- small.yaml --set=run.directory=fallback
outcome "$job" fallback COMPLETED 0:0 0
check 'the same losses through mpirun' fallback.log same_losses alone fallback
check 'mpirun is named' fallback.log says fallback.log 'MPI through mpirun'

# 9. The 175 B script's header, and the script itself on the small model.
script=train_175b.sh
check 'the header is valid' none sbatch --test-only --nodes=2 --ntasks-per-node=2 --cpus-per-task=1 "$SOURCE/slurm/$script"
FULMEN_CONFIG=small.yaml submit large --oversubscribe -- --set run.directory=large
outcome "$job" large COMPLETED 0:0 0
check 'the same losses through train_175b.sh' large.log same_losses alone large
echo "fallback and header done after $SECONDS s"

# 2. goes on: requeued although there was no verdict.
wait_until 60 says killed.log 'the time limit is here' || fail 'the time limit does not come' killed.log
start_again "$killed" killed
outcome "$killed" killed COMPLETED 0:0 1

script=train.sh
# 10. Ranks that do not start at first are started once more; if that fails as well, the job is requeued.
cat >shim/srun <<END
#!/usr/bin/env bash
[[ \$* == --mpi=list || \$* == --version ]] && exec $(command -v srun) "\$@"
echo >>"launches-\$SLURM_JOB_NAME"
if ((\$(wc -l <"launches-\$SLURM_JOB_NAME") <= \$FAILED_LAUNCHES)); then
  echo "srun: error: StepId=\$SLURM_JOB_ID.0 aborted before step completely launched." >&2
  exit 1
fi
exec $(command -v srun) "\$@"
END
FAILED_LAUNCHES=1 PATH=$folder/shim:$PATH submit again -- small.yaml --set run.directory=again
again=$job
FAILED_LAUNCHES=2 PATH=$folder/shim:$PATH submit twice -- small.yaml --set run.directory=twice
wait_until 60 says twice.log 'requeueing' || fail 'launches that fail twice do not requeue the job' twice.log
start_again "$job" twice
outcome "$again" again COMPLETED 0:0 0
outcome "$job" twice COMPLETED 0:0 1
check 'that is said' again.log says again.log 'were not launched (code 1).*once more'
check 'the same losses from the second launch' again.log same_losses alone again
check 'the same losses after a requeue' twice.log same_losses alone twice
echo "launches done after $SECONDS s"

# 11. A job array: %a is a task's number; a task is requeued by itself.
submit array --array=1-2 --output=%x-%a.log -- small.yaml --set run.directory=array-%a --set train.steps=100000
wait_until 40 has_lines array-1/metrics.jsonl 3 || fail 'the array does not start' array-1.log
wait_until 40 has_lines array-2/metrics.jsonl 3 || fail 'the array does not start' array-2.log
touch array-2/STOP
wait_until 40 in_state "${job}_2" PENDING || fail 'the task is not requeued' array-2.log
check 'the other task goes on' array-1.log test "$(field "${job}_1" JobState) $(field "${job}_1" Restarts)" = 'RUNNING 0'
scancel "$job"
wait_until 40 in_state "${job}_1" CANCELLED || fail 'the array is not cancelled' array-1.log
check 'scancel is called by its name' array-1.log says array-1.log 'terminated by scancel'
echo "array done after $SECONDS s"

# 12. A node that fails is not called scancel; Slurm requeues the job.
submit node -- small.yaml --set run.directory=node
wait_until 40 has_lines node/metrics.jsonl 3 || fail 'the run does not start' node.log
scontrol update NodeName=n2 State=DOWN Reason=test
wait_until 40 says node.log 'Slurm has requeued the job' || fail 'the failed node is not told' node.log
check 'it is not called scancel' node.log test "$(grep -c 'by scancel' node.log)" = 0
scontrol update NodeName=n2 State=RESUME >resume.out 2>&1   # if it has not come back by itself
start_again "$job" node
outcome "$job" node COMPLETED 0:0 1
check 'the same losses after a failed node' node.log same_losses alone node

echo "$checks checks, $failures failures after $SECONDS s"
((failures == 0))
