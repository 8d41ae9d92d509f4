#!/usr/bin/env bash
# Layouts agree: the same training on one rank, and on four ranks in three ways. Only rounding differs, which fp64 makes
# small enough to see that nothing else does.
#
#   examples/02-layouts-agree.sh [FOLDER]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_corpus
make_configuration train.yaml 5
train() {
  local name=$1 count=$2
  shift 2
  ranks "$count" train train.yaml --set precision.parameters=fp64 --set run.directory="$name" "$@"
}
train one 1
train data 4
train tensor-pipeline 4 --set parallel.tensor=2 --set parallel.pipeline=2
train sequence-zero 4 --set parallel.sequence=2 --set parallel.zero=3

for name in data tensor-pipeline sequence-zero; do
  expect_close "$(last_loss $name)" "$(last_loss one)" 1e-12 "loss of the last step, $name and one rank"
done
