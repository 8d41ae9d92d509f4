#!/usr/bin/env bash
# A run that is stopped and resumed: it ends with exit code 75 and a checkpoint, goes on with another layout, and arrives
# where an uninterrupted run arrives. fp64 and a large epsilon of AdamW keep the rounding of another layout from growing:
# AdamW divides gradients near zero by their own size.
#
#   examples/03-stop-and-resume.sh [FOLDER]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_corpus
make_configuration train.yaml 100
train() { ranks 2 train train.yaml --set precision.parameters=fp64 --set train.optimizer.eps=1e-3 "$@"; }
train --set run.directory=whole

# A file STOP in the run's folder ends it at the next step, as SIGUSR1 does.
train &
job=$!
until [ -s run/metrics.jsonl ]; do
  kill -0 "$job" 2>/dev/null || { echo "the run ended before its first step" >&2; exit 1; }
  sleep 0.05
done
touch run/STOP
code=0
wait "$job" || code=$?
[ "$code" = 75 ] || { echo "the stopped run ended with $code, not 75" >&2; exit 1; }
fulmen inspect run

# The same command goes on from the newest checkpoint. The layout may differ.
train --set parallel.pipeline=2
expect_close "$(last_loss run)" "$(last_loss whole)" 1e-9 "loss of step 100, resumed and uninterrupted"
