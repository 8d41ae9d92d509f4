#!/usr/bin/env bash
# Comparing gradients: the tool for a new layout or a new kernel. `fulmen gradients` writes the gradient of every
# parameter for one global batch, and h5diff, of the HDF5 tools, names the parameters that differ.
#
#   examples/05-compare-gradients.sh [FOLDER]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_corpus
make_configuration train.yaml 1
gradients() {
  local name=$1 count=$2
  shift 2
  ranks "$count" gradients train.yaml --data corpus --output "$name.h5" --set precision.parameters=fp64 "$@"
}
gradients one 1
gradients pipeline 4 --set parallel.pipeline=2 --set parallel.schedule=zero-bubble
# -d: the difference that is allowed, absolute. Gradients of this model are about 1e-3.
h5diff -v1 -d 1e-12 one.h5 pipeline.h5
echo "no gradient differs by more than 1e-12"

# Another seed is another model. This is how a difference looks.
gradients other 1 --set run.seed=2
if h5diff -r -d 1e-12 one.h5 other.h5 >differences.txt; then
  echo "another seed gave the same gradients" >&2
  exit 1
fi
grep -c '^[0-9]* differences found' differences.txt | sed 's/$/ datasets differ with another seed/'
