#!/usr/bin/env bash
# Trains one configuration under Slurm: one task per rank, through time limits and requeues, to the end of the run.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=16 --time=12:00:00 slurm/train.sh CONFIG [fulmen train flags...]
#
# Paths are relative to the folder that sbatch is called from. Whatever sbatch takes overrides the header below.
#
# Variables, all optional, given in the environment of sbatch:
#   FULMEN          the program; default: build/cpu/bin/fulmen of this source tree, or bin/fulmen of this installation,
#                   else `fulmen` on the PATH
#   FULMEN_ROOT     this source tree, or PREFIX/share/fulmen; default: where the script that sbatch was given lies, else the folder of sbatch
#   RANKS_PER_NODE  default: sbatch's tasks, else one rank per GPU that the job has on a node, else one per node
#   CPUS_PER_RANK   cores, and so threads, of a rank; default: --cpus-per-task, else the node's share. OMP_NUM_THREADS wins.
#   MPI_LAUNCH      auto, or one of srun's --mpi types (pmix, pmi2, none, ...), or mpirun
#
# How a run ends, and what happens then (fulmen's exit code is also in verdict.yaml in the run folder, which is what counts:
# srun's own code is the largest of all tasks', so that a killed rank's 137 hides a 75):
#   0             done.
#   75            stopped with a checkpoint: requeued, and it resumes. --signal below asks for it before the time limit.
#   1, 2, 3       an error, a mistake in the input, a diverged run: never requeued.
#   no verdict    ranks that died: not requeued. Unless it is the time limit that ended them and this attempt has saved a
#                 checkpoint: then the run goes on from it. (Make the signal's lead longer: a step and two checkpoints.)
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

# Signals come to this shell alone. They only set flags until there is a step; bash runs a trap between two commands.
step=
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
  fi
}

# The time limit, scancel, or preemption: Slurm tells the ranks itself, and kills all of us after KillWait. At the time limit
# a checkpoint saved since the start is worth another attempt even if the ranks do not get as far as a verdict.
# shellcheck disable=SC2317 # the trap calls it
on_termination() {
  terminated=yes
  [ -n "$step" ] && [ -z "$requeued" ] || return 0
  if [ "$(job_field Reason)" = TimeLimit ]; then
    say "the time limit is here"
    [ "$(newest_checkpoint)" = "$checkpoint_before" ] || requeue
  else
    say "terminated by scancel, preemption or an operator"
  fi
}

# job_field NAME: of `scontrol show job`.
job_field() {
  scontrol show job -o "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
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
  scontrol requeue "$SLURM_JOB_ID"
  # Success; or ended by the very requeue that it asked for.
  case $? in 0 | 1[2-9][0-9]) return ;; esac
  requeued=
  say "Slurm refuses: submit the job again"
}

# The source tree. sbatch runs a copy of the script, so Slurm is asked where the original lies.
find_root() {
  local here original
  here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  original=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/slurm/train[a-z0-9_]*\.sh.*|\1|p')
  for root in "$here" "$original" "${SLURM_SUBMIT_DIR:-.}"; do
    [ -n "$root" ] && [ -e "$root/slurm/train.sh" ] && return
  done
  root=${SLURM_SUBMIT_DIR:-.}
}

# Where the run's verdict and checkpoints are: run.directory, from the flags, else from the file, else the program's default.
# It is handed to the program as well, so that the two cannot disagree. Only one key of the configuration has this name.
find_run_directory() {
  local word text
  run_directory=
  directory_flags=()
  for word in "$@"; do
    case $word in run.directory=* | --set=run.directory=*) run_directory=${word#*run.directory=} ;; esac
  done
  [ -z "$run_directory" ] || return 0
  text=$(sed -E 's/(^|[[:space:]])#.*//' "$config")
  run_directory=$(sed -nE 's/.*\<directory:[[:space:]]*"?'\''?([^],}"'\'']*[^],}"'\''[:space:]]).*/\1/p' <<<"$text" | tail -n 1)
  if [ -z "$run_directory" ]; then
    grep -qw directory <<<"$text" && refuse "$config: cannot make out run.directory" \
      "write it on one line, directory: PATH, or pass --set run.directory=PATH"
    run_directory=runs/default
  fi
  directory_flags=(--set "run.directory=$run_directory")
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

# Debian's Open MPI, for one, has no PMI-2: its ranks would each run alone. Other MPI libraries have it.
speaks_pmi2() {
  ldd "$program" 2>/dev/null | grep -q libopen-pal || return 0
  ompi_info --parsable 2>/dev/null | grep -q '^mca:pmix:s2:'
}

# What starts the ranks and lets them find each other; `launcher` is the command and `launch` its name for the log.
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

# variables PREFIX...: the environment's variables of these prefixes, without those that may hold a secret.
variables() {
  local prefix name
  for prefix in "$@"; do
    for name in $(compgen -e "$prefix"); do
      case ${name^^} in *JWT* | *TOKEN* | *SECRET* | *PASS* | *KEY* | *CRED* | *AUTH*) continue ;; esac
      printf '%s=%q\n' "$name" "${!name}"
    done
  done
}

# What this attempt runs, where and with what: one file for each attempt.
record_environment() {
  local part
  echo "resumes_from: $checkpoint_before"
  echo "date: $(date --iso-8601=seconds)"
  echo "version: $version"
  echo "program: $program"
  echo "source: $(git -C "$root" describe --always --dirty 2>/dev/null || echo 'no git here')"
  echo "configuration: $config"
  printf 'command: %s\n' "${command[*]@Q}"
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

find_run_directory "$@"
find_ranks
find_launcher
mkdir -p "$run_directory/environment" || refuse "$run_directory: cannot be made" "choose another run.directory"
command=("${launcher[@]}" "$program" train "$config" "$@" "${directory_flags[@]}")

attempt=${SLURM_RESTART_COUNT:-0}
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

rm -f "$run_directory/verdict.yaml"
log_size=$(stat -L -c %s /proc/$$/fd/2)
"${command[@]}" &
step=$!
[ -z "$warned" ] || on_warning
# `wait` also returns at every trap; bash keeps the code of a child that has ended for the last call.
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
step_code=$?

verdict=$(sed -n 's/^exit_code: *//p' "$run_directory/verdict.yaml" 2>/dev/null)
code=$verdict
[ -n "$code" ] || [ "$step_code" -eq 0 ] || code=$(first_failure)
code=${code:-$step_code}
checkpoint=$(newest_checkpoint)
say "ended: verdict ${verdict:-none}, step's code $step_code, newest checkpoint $checkpoint"
[ "$code" = 75 ] || rm -f "$run_directory/STOP"

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
