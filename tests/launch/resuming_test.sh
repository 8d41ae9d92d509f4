#!/usr/bin/env bash
# Stopping and resuming changes nothing: bit for bit on the same layout, to rounding on another layout.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 400
make_configuration good.yaml corpus

# Trains in steps of one, by a file STOP that is there from the start, for a while: in_pieces RANKS FOLDER PIECES ARGUMENTS...
in_pieces() {
  local ranks=$1 folder=$2 piece
  mkdir -p "$folder"
  for ((piece = 0; piece < $3; ++piece)); do
    touch "$folder/STOP"
    expect_code 75 "$ranks" train good.yaml --set run.directory="$folder" "${@:4}"
  done
}

same_bits() {
  check "$1: losses" diff <(json whole/metrics.jsonl loss_nats) <(json "$2/metrics.jsonl" loss_nats)
  check "$1: gradient norms" diff <(json whole/metrics.jsonl grad_norm) <(json "$2/metrics.jsonl" grad_norm)
  check "$1: weights and moments" "$HELPERS/compare_tensors" whole/checkpoints/step-00000012/parameters.h5 '' \
    "$2/checkpoints/step-00000012/parameters.h5" '' 0
}

succeed 1 train good.yaml --set run.directory=whole --set checkpoint.every=5 --set checkpoint.keep=0
check 'twelve steps' test "$(json whole/metrics.jsonl loss_nats | wc -l)" = 12
check 'the loss falls' test "$(json whole/metrics.jsonl loss_nats | awk 'NR == 1 { first = $1 } END { print ($1 < 0.9 * first) }')" = 1
check 'checkpoints when due and at the end' test "$(ls whole/checkpoints | tr '\n' ' ')" = 'step-00000005 step-00000010 step-00000012 '

succeed 1 train good.yaml --set run.directory=again
same_bits 'a second run' again
in_pieces 1 pieces 3
succeed 1 train good.yaml --set run.directory=pieces
same_bits 'a run in pieces' pieces
check 'every step once' diff <(json pieces/metrics.jsonl step) <(seq 12)
succeed 1 train good.yaml --set run.directory=branch --resume whole/checkpoints/step-00000005
check 'from a checkpoint of another run' "$HELPERS/compare_tensors" whole/checkpoints/step-00000012/parameters.h5 '' \
  branch/checkpoints/step-00000012/parameters.h5 '' 0

succeed 1 train good.yaml --set run.directory=copy --resume whole/checkpoints/step-00000012
check 'a finished run of another folder is kept in this folder' test -f copy/checkpoints/step-00000012/manifest.yaml

# Back to an earlier step: later checkpoints belong to a branch that is left, neither pruned nor resumed.
cp -r whole back
succeed 1 train good.yaml --set run.directory=back --rewind back/checkpoints/step-00000005 --set train.steps=7 --set checkpoint.keep=1 --allow-change train.steps
check 'the new branch is kept' test "$(ls back/checkpoints | tr '\n' ' ')" = 'set-aside step-00000007 '
check 'the old branch is set aside' test "$(ls back/checkpoints/set-aside | tr '\n' ' ')" = 'metrics.jsonl step-00000010 step-00000012 '
check 'with what was logged of it' diff <(json back/checkpoints/set-aside/metrics.jsonl step) <(seq 12)
succeed 1 train good.yaml --set run.directory=back --set train.steps=8 --allow-change train.steps
check 'the new branch goes on' diff <(json back/metrics.jsonl step) <(seq 8)

printf '\0\0\n[1]\n{"step":"x"}\n' >>back/metrics.jsonl
succeed 1 train good.yaml --set run.directory=back --set train.steps=8
check 'that nothing is left to do is said' grep -q 'nothing is left to do' err
check 'damaged lines are dropped' diff <(json back/metrics.jsonl step) <(seq 8)

# The same command again goes on from where the run stands, whatever it began from.
five=whole/checkpoints/step-00000005
in_pieces 1 tuned 2 --resume $five
check 'it goes on' diff <(json tuned/metrics.jsonl step) <(seq 6 7)
check 'and says why' grep -q "tuned/checkpoints/step-00000006 descends from $five: going on from it" err
mv $five elsewhere
in_pieces 1 tuned 1 --resume $five
in_pieces 1 tuned 1 --resume elsewhere
mv elsewhere $five
check 'where it began may be gone, or be elsewhere' diff <(json tuned/metrics.jsonl step) <(seq 6 9)
in_pieces 1 tuned 1 --resume tuned/checkpoints/step-00000008 --set checkpoint.keep=1
in_pieces 1 tuned 1 --resume tuned/checkpoints/step-00000008
succeed 1 train good.yaml --set run.directory=tuned --resume tuned
check 'from a step of its own, there or pruned' diff <(json tuned/metrics.jsonl step) <(seq 6 12)
refuse 1 step-00000099 'no such folder' -- train good.yaml --set run.directory=tuned --resume tuned/checkpoints/step-00000099
refuse 1 'is no ancestor of the checkpoints in tuned/checkpoints' --rewind -- \
  train good.yaml --set run.directory=tuned --resume whole/checkpoints/step-00000010
refuse 1 'both given' -- train good.yaml --set run.directory=tuned --resume $five --rewind $five
# Going back is another wish, each time it is said.
in_pieces 1 tuned 2 --rewind $five
check 'back, and back again' diff <(json tuned/metrics.jsonl step) <(echo 6)
check 'all of another line is set aside' test "$(ls tuned/checkpoints | tr '\n' ' ')" = 'set-aside set-aside-2 step-00000006 '
rm -rf tuned/checkpoints
refuse 1 'was started from' '--resume none' -- train good.yaml --set run.directory=tuned
# Within a job of Slurm, which repeats the command with each requeue, once is enough.
export SLURM_JOB_ID=9
in_pieces 1 tuned 1 --rewind $five
SLURM_RESTART_COUNT=1 in_pieces 1 tuned 1 --rewind $five
SLURM_RESTART_COUNT=2 in_pieces 1 tuned 1 --rewind $five
check 'a requeued --rewind goes on' diff <(json tuned/metrics.jsonl step) <(seq 6 8)
in_pieces 1 fresh 1 --resume none
SLURM_RESTART_COUNT=1 in_pieces 1 fresh 1 --resume none
check 'a requeued --resume none goes on' diff <(json fresh/metrics.jsonl step) <(seq 2)
SLURM_JOB_ID=10 SLURM_RESTART_COUNT=1 refuse 1 'already holds checkpoints' -- train good.yaml --set run.directory=fresh --resume none
unset SLURM_JOB_ID
refuse 1 'already holds checkpoints' -- train good.yaml --set run.directory=fresh --resume none

mkdir late && touch late/STOP
succeed 1 train good.yaml --set run.directory=late --set train.steps=1
check 'a wish to stop does not outlive the last step' test ! -e late/STOP

# Four ranks as well.
rm -rf whole
succeed 4 train good.yaml --set run.directory=whole --set parallel.tensor=2 --set parallel.pipeline=2
in_pieces 4 pieces4 1 --set parallel.tensor=2 --set parallel.pipeline=2
succeed 4 train good.yaml --set run.directory=pieces4 --set parallel.tensor=2 --set parallel.pipeline=2
same_bits 'four ranks in pieces' pieces4

# On other layouts, in fp64: data 2 x pipeline 2, then tensor 2 x data 2, then one rank.
sed -i 's/^data:/precision: {parameters: fp64}\ndata:/' good.yaml
succeed 1 train good.yaml --set run.directory=one
in_pieces 4 mixed 2 --set parallel.pipeline=2
in_pieces 4 mixed 2 --set parallel.tensor=2 --set train.micro_batch=2
succeed 1 train good.yaml --set run.directory=mixed
json one/metrics.jsonl loss_nats >expected
json mixed/metrics.jsonl loss_nats >got
check 'losses on changing layouts' close got expected 1e-10
json one/metrics.jsonl grad_norm >expected
json mixed/metrics.jsonl grad_norm >got
check 'gradient norms on changing layouts' close got expected 1e-9
check 'weights on changing layouts' "$HELPERS/compare_tensors" mixed/checkpoints/step-00000012/parameters.h5 /parameters \
  one/checkpoints/step-00000012/parameters.h5 /parameters 1e-9

finish
