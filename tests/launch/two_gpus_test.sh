#!/usr/bin/env bash
# Two GPUs over NCCL against one: losses of every kind of layout in fp32, and smoothed in bf16 (ONLY=fp32 or bf16: these alone;
# LAYOUTS='KEY=VALUE KEY=VALUE|...': these layouts instead).
# Ends with 77 where there are fewer than two GPUs.
export FULMEN_TEST_DEVICE=cuda
unset CUDA_VISIBLE_DEVICES
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

require_two_gpus

losses() { json "$1/metrics.jsonl" loss_nats; }
# Means over fiftieths: what is left of a curve when single steps do not count. smooth FILE
smooth() { awk '{sum += $1; ++count} NR % 50 == 0 {printf "%.9f\n", sum / count; sum = count = 0}' "$1"; }

# Characters of which each has four likely successors (1.4 nats with the rest), a paragraph of 2000 a document: nothing to know
# by heart, of which a curve would depend on the moment. make_chain FILE DOCUMENTS
make_chain() {
  awk -v documents="$2" 'BEGIN {
    srand(7)
    for (i = 0; i < 94 * 4; ++i) successor[i] = int(rand() * 94)
    for (document = 0; document < documents; ++document) {
      text = ""
      state = int(rand() * 94)
      for (i = 0; i < 2000; ++i) {
        text = text sprintf("%c", 33 + state)
        u = rand()
        state = u < 0.95 ? successor[4 * state + (u < 0.6 ? 0 : u < 0.8 ? 1 : u < 0.9 ? 2 : 3)] : int(rand() * 94)
      }
      printf "%s\n\n", text
    }
  }' >"$1"
}

layouts=(
  'parallel.data=2'
  'parallel.data=2 parallel.zero=1'
  'parallel.data=2 parallel.zero=2'
  'parallel.data=2 parallel.zero=3'
  'parallel.data=2 parallel.zero=3 parallel.recompute=full'
  'parallel.data=2 parallel.overlap=none'
  'parallel.tensor=2'
  'parallel.tensor=2 parallel.tensor_sequence_split=true'
  'parallel.sequence=2'
  'parallel.sequence=2 parallel.zero=1'
  'parallel.pipeline=2 parallel.schedule=gpipe'
  'parallel.pipeline=2'
  'parallel.pipeline=2 parallel.schedule=interleaved parallel.chunks=2'
  'parallel.pipeline=2 parallel.schedule=zero-bubble'
)

[[ -z ${LAYOUTS:-} ]] || IFS='|' read -ra layouts <<<"$LAYOUTS"

# compare CONFIGURATION PRECISION TOLERANCE: every layout against one GPU; in bf16 smoothed.
compare() {
  local configuration=$1 precision=$2 tolerance=$3 layout name settings
  echo "-- $precision"
  succeed 1 train "$configuration" --set run.device=cuda --set run.directory="one-$precision" \
    --set precision.parameters="$precision"
  losses "one-$precision" >expected
  [[ $precision == bf16 ]] && smooth expected >smoothed && mv smoothed expected
  for layout in "${layouts[@]}"; do
    name="two-$precision-${layout// /-}"
    settings=()
    for setting in $layout; do settings+=(--set "$setting"); done
    succeed 2 train "$configuration" --set run.device=cuda --set run.directory="$name" --set precision.parameters="$precision" \
      --set parallel.transport=nccl "${settings[@]}"
    losses "$name" >got
    [[ $precision == bf16 ]] && smooth got >smoothed && mv smoothed got
    check "$precision, $layout: losses" close got expected "$tolerance"
  done
}

make_byte_corpus corpus 4000
make_configuration narrow.yaml corpus
[[ ${ONLY:-} == bf16 ]] || compare narrow.yaml fp32 1e-5
[[ ${ONLY:-} == fp32 ]] && finish

# Heads as wide as in the released models, which take the fast path in bf16.
make_chain chain.txt 350
succeed 1 prepare --input chain.txt --output chain --tokenizer bytes
cat >wide.yaml <<END
model: {family: transnormer, layers: 4, hidden: 256, heads: 2, glu: 512, vocabulary: 257}
data: {path: chain, sequence_length: 256}
train:
  steps: 300
  global_batch: 8
  micro_batch: 2
  optimizer: {lr: 1e-3}
  schedule: {kind: cosine, warmup_steps: 20, min_lr: 1e-4}
checkpoint: {every: 0}
END
compare wide.yaml bf16 3e-3

finish
