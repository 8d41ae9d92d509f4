#!/usr/bin/env bash
# Trains one configuration under Slurm: one task per rank, through time limits and requeues, to the end of the run.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=16 --time=12:00:00 slurm/train.sh CONFIG [fulmen train flags...]
#
# Paths are relative to the folder that sbatch is called from. Whatever sbatch takes overrides the header below.
#
# A job array trains several runs: in CONFIG and the flags %a is the number of the array's task. Each needs a folder of its own:
#
#   sbatch --array=1-3 ... slurm/train.sh CONFIG --set run.seed=%a --set run.directory=runs/seed-%a
#
# Variables, all optional, given in the environment of sbatch:
#   FULMEN          the program; default: build/cpu/bin/fulmen of this source tree, or bin/fulmen of this installation,
#                   else `fulmen` on the PATH
#   FULMEN_ROOT     this source tree, or PREFIX/share/fulmen; default: where the script that sbatch was given lies, else the folder of sbatch
#   RANKS_PER_NODE  default: sbatch's tasks, else one rank per GPU that the job has on a node, else one per node
#   CPUS_PER_RANK   cores, and so threads, of a rank; default: --cpus-per-task, else the node's share. OMP_NUM_THREADS wins.
#   MPI_LAUNCH      auto, or a type of srun's --mpi (pmix, pmi2, none, ...), or mpirun
#
# How a run ends, and what happens then (fulmen's exit code is also in verdict.yaml in the run folder, which is what counts:
# srun's own code is the largest of all tasks', so that a killed rank's 137 hides a 75):
#   0             done.
#   75            stopped with a checkpoint: requeued, and it resumes. --signal below asks for it before the time limit.
#   1, 2, 3       an error, a mistake in the input, a diverged run: never requeued.
#   no verdict    ranks that died: not requeued. Unless it is the time limit that ended them and this attempt has saved a
#                 checkpoint: then the run goes on from it. (Make the signal's lead longer: a step and two checkpoints.)
#   not launched  ranks that never came as far as the run, as when a node still holds an earlier step: launched once more,
#                 then requeued.
#   a node fails  Slurm requeues the job itself, unless it may not.
#   scancel       a checkpoint if KillWait allows, and not requeued.
# An attempt that saved no checkpoint is not requeued either: it would go on like that for ever. To end a run with a
# checkpoint and for good: scontrol update JobId=N Requeue=0, then touch STOP in the run folder.
#
#SBATCH --job-name=fulmen
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
set -u

say() { echo "train.sh: $*"; }
# refuse WHAT REMEDY: the user's mistake.
refuse() {
  printf 'train.sh: error: %s\n  -> %s\n' "$1" "$2" >&2
  exit 2
}

# A task of a job array is named by its place in it: its number may belong to the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-${SLURM_JOB_ID:-}}
attempt=${SLURM_RESTART_COUNT:-0}

# Signals come to this shell alone. They only set flags until there is a step; bash runs a trap between two commands.
step=
stop_is_ours=
warned=
requeued=
terminated=
trap on_warning USR1
trap on_termination TERM

# --signal: the time limit is near. srun and mpirun hand USR1 to every rank. Ranks that have not started to listen would die
# of it, and are asked through the file STOP; the run writes configuration.yaml once all of them listen.
on_warning() {
  warned=yes
  [ -n "$step" ] || return 0
  if [ "$run_directory/configuration.yaml" -nt "$record" ]; then
    say "the time limit is near: USR1 to the ranks, which save a checkpoint and stop"
    kill -USR1 "$step" 2>/dev/null
  else
    say "the time limit is near: the run is still starting, STOP asks it to save a checkpoint after its first step"
    touch "$run_directory/STOP"
    stop_is_ours=yes
  fi
  local seconds
  seconds=$(($(date -d "$(job_field EndTime)" +%s) - $(date -d "$(job_field StartTime)" +%s)))
  [ $((4 * SECONDS)) -ge "$seconds" ] || say "warning: the signal came $SECONDS s after the start: the time limit of $seconds s is" \
    "hardly longer than the signal's lead; give sbatch a longer --time, or a shorter lead (--signal=B:USR1@SECONDS)"
}

# The time limit, scancel, preemption or a node that failed: Slurm tells the ranks itself, and kills all of us after KillWait. At the time limit
# a checkpoint saved since the start is worth another attempt even if the ranks do not get as far as a verdict.
# shellcheck disable=SC2317 # the trap calls it
on_termination() {
  local restarts
  terminated=yes
  [ -n "$step" ] && [ -z "$requeued" ] || return 0
  restarts=$(job_field Restarts)
  if [ "$(job_field Reason)" = TimeLimit ]; then
    say "the time limit is here"
    [ "$(newest_checkpoint)" = "$checkpoint_before" ] || requeue
  elif [ "${restarts:-$attempt}" != "$attempt" ]; then
    requeued=yes
    say "Slurm has requeued the job (a node failed, it was preempted, or an operator did), to go on from $(newest_checkpoint)"
  elif [[ $(job_field JobState) == NODE_FAIL || $(job_field Reason) == NodeDown ]]; then
    say "a node of this job failed, and it may not be requeued: submit it again to go on from $(newest_checkpoint)"
  else
    say "terminated by scancel or an operator"
  fi
}

# job_field NAME: of `scontrol show job`.
job_field() {
  scontrol show job -o "$job" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

# The newest finished checkpoint's name, or none. A folder without a manifest is not finished.
newest_checkpoint() {
  local manifest newest=none
  for manifest in "$run_directory"/checkpoints/step-*/manifest.yaml; do
    [ -e "$manifest" ] && newest=$(basename "$(dirname "$manifest")")
  done
  echo "$newest"
}

# Slurm ends this shell for it, so it comes last.
requeue() {
  if [ "$(job_field Requeue)" = 0 ]; then
    say "requeueing is switched off for this job: submit it again to go on from $(newest_checkpoint)"
    return
  fi
  say "requeueing, to go on from $(newest_checkpoint)"
  requeued=yes
  scontrol requeue "$job"
  # Success; or ended by the very requeue that it asked for.
  case $? in 0 | 1[2-9][0-9]) return ;; esac
  requeued=
  say "Slurm refuses: submit the job again"
}

# The source tree. sbatch runs a copy of the script, so Slurm is asked where the original lies.
find_root() {
  local here original
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  original=$(scontrol show job "$job" | sed -n 's|^ *Command=\(.*\)/slurm/train[a-z0-9_]*\.sh.*|\1|p')
  for root in "$here" "$original" "${SLURM_SUBMIT_DIR:-.}"; do
    [ -n "$root" ] && [ -e "$root/slurm/train.sh" ] && return
  done
  root=${SLURM_SUBMIT_DIR:-.}
}

# How many ranks, and how many cores each.
find_ranks() {
  local nodes=$SLURM_JOB_NUM_NODES cores=${SLURM_CPUS_ON_NODE:-$(nproc)} per_node
  if [ -n "${RANKS_PER_NODE:-}" ]; then
    ranks=$((nodes * RANKS_PER_NODE))
  elif [ -n "${SLURM_NTASKS:-}" ]; then
    ranks=$SLURM_NTASKS
  else
    ranks=$((nodes * ${SLURM_GPUS_ON_NODE:-1}))
  fi
  per_node=$(((ranks + nodes - 1) / nodes))
  cpus_per_rank=$((cores / per_node))
  [ -n "${RANKS_PER_NODE:-}" ] || cpus_per_rank=${SLURM_CPUS_PER_TASK:-$cpus_per_rank}
  cpus_per_rank=${CPUS_PER_RANK:-$cpus_per_rank}
  [ "$cpus_per_rank" -gt 0 ] || refuse "$per_node ranks on a node that gives this job $cores cores" \
    "ask sbatch for more cores, or set RANKS_PER_NODE or CPUS_PER_RANK"
  placement=(--nodes="$nodes" --ntasks="$ranks" --cpus-per-task="$cpus_per_rank")
  [ -z "${RANKS_PER_NODE:-}" ] || placement+=(--ntasks-per-node="$RANKS_PER_NODE")
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cpus_per_rank}
  # Ranks are bound to their own cores, and threads inside them, where this Slurm can bind at all. Otherwise threads float:
  # places that span the whole node would put every rank's threads on the same first cores.
  if scontrol show config | grep -q '^TaskPlugin *=.*\(affinity\|cgroup\)'; then
    placement+=(--cpu-bind=cores)
    export OMP_PLACES=${OMP_PLACES:-cores} OMP_PROC_BIND=${OMP_PROC_BIND:-close}
  fi
}

# Debian's Open MPI, for example, has no PMI-2: its ranks would each run alone. Other MPI libraries have it.
speaks_pmi2() {
  ldd "$program" 2>/dev/null | grep -q libopen-pal || return 0
  ompi_info --parsable 2>/dev/null | grep -q '^mca:pmix:s2:'
}

# The launcher starts the ranks and lets them find each other; `launcher` is the command and `launch` its name for the log.
find_launcher() {
  local offered
  launch=${MPI_LAUNCH:-auto}
  if [ "$launch" = auto ]; then
    offered=$(srun --mpi=list 2>&1 | tr -s ' \t\n' ' ')
    case " $offered " in
      *' pmix '*) launch=pmix ;;
      *' pmi2 '*) speaks_pmi2 && launch=pmi2 ;;
    esac
    [ "$launch" != auto ] || ! command -v mpirun >/dev/null || launch=mpirun
    [ "$launch" != auto ] || refuse "no way to start MPI ranks; srun --mpi=list says: $offered" \
      "load the MPI library's module, so that mpirun is on the PATH, or set MPI_LAUNCH"
    say "MPI through $launch ($offered)"
  else
    say "MPI through $launch, as MPI_LAUNCH says"
  fi
  if [ "$launch" = mpirun ]; then
    # It takes the nodes and their ranks from Slurm, hands USR1 on, and ends all ranks when one fails. Nothing is bound.
    [ -z "${RANKS_PER_NODE:-}" ] || export SLURM_TASKS_PER_NODE="$RANKS_PER_NODE(x$SLURM_JOB_NUM_NODES)"
    launcher=(mpirun -n "$ranks" --bind-to none)
    unset OMP_PLACES OMP_PROC_BIND
  else
    launcher=(srun --mpi="$launch" --kill-on-bad-exit=1 --wait=60 "${placement[@]}")
  fi
}

# Whether a variable's name says that its value is a secret.
secret_name() {
  case ${1^^} in *JWT* | *TOKEN* | *SECRET* | *PASS* | *KEY* | *CRED* | *AUTH*) return 0 ;; esac
  return 1
}

# Whether a text holds a secret: the value of a variable that is named like a secret, a password in an address, or what looks like
# a key that a service gave out.
secrets=()
for name in $(compgen -e); do
  secret_name "$name" && value=${!name} && [[ ${#value} -ge 8 && $value != /* ]] && secrets+=("$value")
done
holds_secret() {
  local secret
  for secret in "${secrets[@]}"; do [[ $1 != *"$secret"* ]] || return 0; done
  [[ $1 =~ ://[^/@[:space:]]*:[^/@[:space:]]+@ ]] && return 0
  [[ $1 =~ (^|[^A-Za-z0-9])(gh[a-z]_|github_pat_|glpat-|hf_|sk-|xox[a-z]-|A[KS]IA|AIza|eyJ)[A-Za-z0-9_-]{16} ]] && return 0
  [[ $1 =~ ^[A-Za-z0-9+/=]{32,}$ && $1 == *[0-9]* && $1 == *[A-Za-z]* && $1 != /* ]]
}

# variables PREFIX...: the environment's variables of these prefixes; of secrets not even the name, or not the value.
variables() {
  local prefix name
  for prefix in "$@"; do
    for name in $(compgen -e "$prefix"); do
      if secret_name "$name"; then
        continue
      elif holds_secret "${!name}"; then
        echo "$name=(left out: it looks like a secret)"
      else
        printf '%s=%q\n' "$name" "${!name}"
      fi
    done
  done
}

# words WORD...: quoted for a shell, without secrets.
words() {
  local word
  for word in "$@"; do
    if holds_secret "$word"; then printf ' (left out)'; else printf ' %s' "${word@Q}"; fi
  done
}

# Records what this attempt runs, where and with what: one file for each attempt.
record_environment() {
  local part
  echo "resumes_from: $checkpoint_before"
  echo "date: $(date --iso-8601=seconds)"
  echo "version: $version"
  echo "program: $program"
  echo "source: $(git -C "$root" describe --always --dirty 2>/dev/null || echo 'no git here')"
  echo "configuration: $config"
  echo "command:$(words "${command[@]}")"
  echo "nodes: $(scontrol show hostnames "$SLURM_JOB_NODELIST" | tr '\n' ' ')"
  echo "kernel: $(uname -srm)"
  echo "slurm: $(srun --version)"
  for part in 'ulimit -a' lscpu nvidia-smi 'module list'; do
    command -v "${part%% *}" >/dev/null || continue
    printf '\n== %s\n' "$part"
    # shellcheck disable=SC2086 # a command and its argument
    $part 2>&1
  done
  printf '\n== environment\n'
  variables SLURM_ OMP_ GOMP_ KMP_ MKL_ OPENBLAS_ OMPI_ UCX_ FI_ NCCL_ CUDA_ FULMEN RANKS_ CPUS_ MPI_ \
    LOADEDMODULES LD_LIBRARY_PATH PATH
}

# The code of the task that failed first. srun reports it, and then 143 for the tasks that it killed in return.
first_failure() {
  [ -f /proc/$$/fd/2 ] || return 0
  tail -c "+$((log_size + 1))" /proc/$$/fd/2 |
    sed -n 's/^srun: error: .*: tasks\{0,1\} [0-9,-]*: Exited with exit code \([0-9]*\)$/\1/p' | head -n 1
}

[ -n "${SLURM_JOB_ID:-}" ] || refuse "this is a batch script for Slurm" "sbatch --nodes=2 --ntasks-per-node=4 slurm/train.sh CONFIG"
[ $# -ge 1 ] || refuse "no configuration is given" "sbatch slurm/train.sh CONFIG [fulmen train flags...]"
[ -z "${SLURM_ARRAY_TASK_ID:-}" ] || set -- "${@//%a/$SLURM_ARRAY_TASK_ID}"
config=$1
shift
[ -f "$config" ] || refuse "$config: no such file, seen from $PWD on $(hostname)" \
  "give the configuration's path relative to the folder of sbatch, on a file system that the nodes share"

root=${FULMEN_ROOT:-}
[ -n "$root" ] || find_root
program=${FULMEN:-$root/build/cpu/bin/fulmen}
[ -n "${FULMEN:-}" ] || [ -x "$program" ] || [ ! -x "$root/../../bin/fulmen" ] || program=$root/../../bin/fulmen
[ -n "${FULMEN:-}" ] || [ -x "$program" ] || program=$(command -v fulmen || echo "$program")
command -v "$program" >/dev/null || refuse "$program: no such program, seen from $PWD on $(hostname)" \
  "build it (cmake --preset cpu && cmake --build --preset cpu), or set FULMEN to the program's path"
version=$("$program" --version 2>&1) || refuse "$program cannot be run on $(hostname): $version" \
  "load the modules that it was built with before sbatch"

# The program reads its own configuration and flags, and refuses here what it would refuse on every rank.
run_directory=$("$program" train "$config" "$@" --print run.directory) || exit
find_ranks
find_launcher
mkdir -p "$run_directory/environment" || refuse "$run_directory: cannot be made" "choose another run.directory"
command=("${launcher[@]}" "$program" train "$config" "$@")

checkpoint_before=$(newest_checkpoint)
# Slurm requeues by itself after a node failure or a preemption. Once or twice without progress is bad luck.
starts=$(grep -lxs "resumes_from: $checkpoint_before" "$run_directory/environment/job-$SLURM_JOB_ID-attempt-"*.txt | wc -l)
if [ "$starts" -ge 3 ]; then
  say "three attempts have started from the same checkpoint ($checkpoint_before): not trying again; see what ended them above"
  exit 1
fi
record=$run_directory/environment/job-$SLURM_JOB_ID-attempt-$attempt.txt
record_environment >"$record"
say "attempt $attempt of job $SLURM_JOB_ID: $version; $ranks ranks x $OMP_NUM_THREADS threads on $SLURM_JOB_NODELIST"
say "run folder $run_directory, from checkpoint: $checkpoint_before"

# Runs the command to its end. Sets `step_code`, `verdict` and `code`.
launch() {
  log_size=$(stat -L -c %s /proc/$$/fd/2)
  "${command[@]}" &
  step=$!
  [ -z "$warned" ] || on_warning
  # `wait` also returns at every trap; bash keeps the code of a child that has ended for the last call.
  while kill -0 "$step" 2>/dev/null; do wait "$step"; done
  wait "$step"
  step_code=$?
  step=
  verdict=$(own_verdict)
  code=$verdict
  [ -n "$code" ] || [ "$step_code" -eq 0 ] || code=$(first_failure)
  code=${code:-$step_code}
}

# The exit code that this attempt's run has noted. A verdict of another job, which had the folder before or has it now, is not.
own_verdict() {
  local file=$run_directory/verdict.yaml
  grep -qsx "job: \"$SLURM_JOB_ID\"" "$file" && grep -qsx "attempt: \"$attempt\"" "$file" || return 0
  sed -n 's/^exit_code: *//p' "$file"
}

# Whether no rank came as far as the run, which takes the file run.lock when it begins. Mistakes are told before that.
not_launched() {
  [ -z "$verdict$terminated$requeued" ] || return 1
  case $code in 0 | 2 | 3 | 75) return 1 ;; esac
  [ ! "$run_directory/run.lock" -nt "$record" ]
}

launch
if not_launched; then
  say "the ranks were not launched (code $code), as when a node still holds an earlier step: once more in 5 s"
  sleep 5
  [ -n "$terminated" ] || launch
  if not_launched; then
    say "the ranks were not launched again (code $code)"
    requeue
  fi
fi

checkpoint=$(newest_checkpoint)
say "ended: verdict ${verdict:-none}, step's code $step_code, newest checkpoint $checkpoint"
[ "$code" = 75 ] || [ -z "$stop_is_ours" ] || rm -f "$run_directory/STOP"

[ -z "$requeued" ] || exit 75
if [ "$verdict" = 75 ] && [ "$checkpoint" = "$checkpoint_before" ]; then
  say "no new checkpoint in this attempt: another would end like it, so the job is not requeued"
  exit 1
fi
if [ "$verdict" = 75 ] && { [ -z "$terminated" ] || [ "$(job_field Reason)" = TimeLimit ]; }; then
  requeue
elif [ "$code" != 0 ]; then
  say "not requeued"
fi
exit "$code"
