#!/usr/bin/env bash
# A rank of two GPUs over NCCL that is killed or stopped in the middle ends the job within the time-out, with one message that
# names it and what it did last. Ends with 77 where there are fewer than two GPUs.
export FULMEN_TEST_DEVICE=cuda
unset CUDA_VISIBLE_DEVICES
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
source "$(dirname "${BASH_SOURCE[0]}")/lost_rank.sh"
require_two_gpus

make_byte_corpus corpus 400
make_configuration good.yaml corpus
count=2 timeout_seconds=4 device=(--set run.device=cuda --set parallel.transport=nccl)
# Seconds after the time-out: records, the abort of NCCL and of MPI, and a driver's time to let go of a GPU.
ending=12

# stopped RANK LAYOUT...
stopped() {
  start "${@:2}"
  kill -STOP "${ranks[$1]}"
  ended "kill -STOP of rank $1, ${*:2}" $((timeout_seconds + ending))
  lost "kill -STOP of rank $1, ${*:2}" "$1" 'is missing'
  check 'the message gives the time-out' grep -q "not completed within $timeout_seconds s (run.timeout)" err
}

# killed RANK LAYOUT...
killed() {
  start "${@:2}"
  kill -9 "${ranks[$1]}"
  ended "kill -9 of rank $1, ${*:2}" $((timeout_seconds + ending))
  lost "kill -9 of rank $1, ${*:2}" "$1" 'has ended\|is missing'
}

killed 1 --set parallel.data=2 --set parallel.zero=1
killed 0 --set parallel.pipeline=2
stopped 1 --set parallel.tensor=2
stopped 0 --set parallel.data=2 --set parallel.zero=3
stopped 1 --set parallel.pipeline=2 --set parallel.schedule=zero-bubble
finish
