#!/usr/bin/env bash
# The 175 B model on eleven nodes of eight ranks: a job header for configs/transnormer-175b.yaml over train.sh, which says
# what happens at the time limit and afterwards, and which variables there are.
#
#   sbatch slurm/train_175b.sh [fulmen train flags...]
#
# With --nodes=22, 33, ... the further ranks are data-parallel.
# Each rank holds 2.0 B parameters: 32 GB at 16 bytes each, plus its activations. A checkpoint is 2.1 TB, and the signal
# leaves twenty minutes for a step and that. FULMEN_CONFIG names another configuration. On nodes with GPUs, one rank for
# each: sbatch --gpus-per-node=8 slurm/train_175b.sh
#
#SBATCH --job-name=fulmen-175b
#SBATCH --nodes=11
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@1200
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -u

# sbatch runs a copy of this script, so Slurm is asked where the original lies.
original=$(scontrol show job "${SLURM_JOB_ID:-}" | sed -n 's|^ *Command=\(.*\)/slurm/train_175b\.sh.*|\1|p')
FULMEN_ROOT=${FULMEN_ROOT:-${original:-${SLURM_SUBMIT_DIR:-.}}}
[ -e "$FULMEN_ROOT/slurm/train.sh" ] || {
  echo "train_175b.sh: error: $FULMEN_ROOT is neither Fulmen's source tree nor its PREFIX/share/fulmen: set FULMEN_ROOT to it" >&2
  exit 2
}
exec bash "$FULMEN_ROOT/slurm/train.sh" "${FULMEN_CONFIG:-$FULMEN_ROOT/configs/transnormer-175b.yaml}" "$@"
