# Shared by the examples: the program, a folder of their own, ranks, a corpus and a configuration. Each sources this.
set -euo pipefail
export LC_ALL=C OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
source_tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${FULMEN:-$source_tree/build/cpu/bin/fulmen}
[ -x "$program" ] || { echo "$program is missing: build it (cmake --preset cpu && cmake --build --preset cpu)" >&2; exit 2; }

# The folder of the example: build/examples/NAME, emptied, or the given folder, which must be new or empty.
case ${1:-} in
  "") folder=$source_tree/build/examples/$(basename "$0" .sh) && rm -rf "$folder" ;;
  -*) sed -n '2,/^source/{/^#/p}' "$0" >&2; exit 2 ;;
  *) folder=$1 ;;
esac
mkdir -p "$folder"
[ -z "$(ls -A "$folder")" ] || { echo "$folder is not empty: give a new folder" >&2; exit 2; }
cd "$folder"

fulmen() { "$program" "$@"; }
# ranks N COMMAND...: fulmen on N ranks of this machine.
ranks() {
  local count=$1
  shift
  mpirun --oversubscribe --bind-to none -n "$count" "$program" "$@"
}

# This project's own documents, byte by byte: 256 bytes and a mark for the end of a document.
make_corpus() {
  fulmen prepare --input "$source_tree"/*.md "$source_tree"/docs/*.md --output corpus --tokenizer bytes --holdout 0.05
}

# make_configuration FILE STEPS: a small model that trains in seconds.
make_configuration() {
  cat >"$1" <<END
model: {layers: 2, hidden: 64, heads: 4, glu: 176, vocabulary: 257}
data:  {path: corpus, sequence_length: 128}
train:
  steps: $2
  global_batch: 8
  micro_batch: 2
  optimizer: {lr: 5.0e-3}
  schedule:  {kind: cosine, warmup_steps: 5, min_lr: 5.0e-4}
run: {directory: run}
END
}

# last_loss RUN: the loss of the last step that a run has logged, in nats per token.
last_loss() { tail -n 1 "$1/metrics.jsonl" | sed 's/.*"loss_nats":\([^,}]*\).*/\1/'; }

# expect_close A B TOLERANCE WHAT: fails unless A and B differ by at most that much of B.
expect_close() {
  awk -v a="$1" -v b="$2" -v tolerance="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(b != 0 && d <= tolerance * b) }' ||
    { echo "$4: $1 is not $2" >&2; exit 1; }
  echo "$4: $1 and $2"
}
