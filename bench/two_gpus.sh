#!/usr/bin/env bash
# A training step on two GPUs of one host in every way of the README's tables, and on each GPU alone, all with its timeline.
#
#   bench/two_gpus.sh OUTPUT_DIR [NAME...]     all of them, or those whose names begin so; a quarter to a whole minute each
#
# Takes `fulmen` from PATH, else from build/cuda/bin. OUTPUT_DIR gets NAME.txt and NAME.json.gz; what failed is said and does not
# stop the rest. The 7B and the 385M's long sequences need cards of 141 GB. In pipelines the layers of a stage are chosen to balance
# the head on the last.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,8p' "$0" >&2; exit 2; }
output=$1; shift
command -v fulmen >/dev/null || PATH=$PWD/build/cuda/bin:$PATH
command -v fulmen >/dev/null || { echo "two_gpus: no fulmen in PATH or build/cuda/bin: build the cuda preset" >&2; exit 2; }
mkdir -p "$output"
wanted=("$@")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
failed=

wants() {
  [ ${#wanted[@]} -gt 0 ] || return 0
  local word
  for word in "${wanted[@]}"; do [[ $1 == "$word"* ]] && return 0; done
  return 1
}
# step RANKS NAME OPTIONS...
step() {
  local ranks=$1 name=$2
  shift 2
  wants "$name" || return 0
  local launch=()
  [ "$ranks" = 1 ] || launch=(mpirun --bind-to none -n "$ranks")
  if "${launch[@]}" fulmen bench step "$@" --device cuda --trace "$output/$name.json" >"$output/$name.txt" 2>"$output/$name.err"; then
    gzip -f "$output/$name.json"
    printf '%-28s %s\n' "$name" "$(sed -n 's/^step  *//p' "$output/$name.txt")"
    grep -A1 -E '^(timeline|pipeline  )|^memory' "$output/$name.txt" | grep -E '^(timeline|pipeline  |memory)|the step is' | sed 's/^/    /'
  else
    failed="$failed $name"
    echo "$name failed: $(tail -n 1 "$output/$name.err")"
  fi
}
# settings KEY=VALUE...: as options, in `set`.
settings() {
  set_options=()
  local setting
  for setting in "$@"; do set_options+=(--set "parallel.$setting"); done
}

small=(--preset transnormer-1b --sequence-length 2048)
step 1 one-1b "${small[@]}" --micro-batch 8
CUDA_VISIBLE_DEVICES=1 step 1 one-1b-gpu1 "${small[@]}" --micro-batch 8
settings data=2 zero=1
step 2 data2-zero1 "${small[@]}" --micro-batch 8 --global-batch 16 "${set_options[@]}"
settings data=2 zero=3
step 2 data2-zero3 "${small[@]}" --micro-batch 8 --global-batch 16 "${set_options[@]}"
settings tensor=2 tensor_sequence_split=true
step 2 tensor2 "${small[@]}" --micro-batch 16 "${set_options[@]}"
pipeline=("${small[@]}" --micro-batch 2 --global-batch 16)
settings pipeline=2 'stages=[9,7]' schedule=1f1b
step 2 pipeline2-1f1b "${pipeline[@]}" "${set_options[@]}"
settings pipeline=2 'stages=[4,5,5,2]' chunks=2 schedule=interleaved
step 2 pipeline2-interleaved "${pipeline[@]}" "${set_options[@]}"
settings pipeline=2 'stages=[4,5,5,2]' chunks=2 schedule=zero-bubble
step 2 pipeline2-zero-bubble "${pipeline[@]}" "${set_options[@]}"

long=(--preset transnormer-385m --micro-batch 1)
step 1 one-385m "${long[@]}" --sequence-length 131072 --steps 3
CUDA_VISIBLE_DEVICES=1 step 1 one-385m-gpu1 "${long[@]}" --sequence-length 131072 --steps 3
settings sequence=2 zero=1
step 2 sequence2-262k "${long[@]}" --sequence-length 262144 --steps 3 "${set_options[@]}"
settings sequence=2
step 2 sequence2-262k-zero0 "${long[@]}" --sequence-length 262144 --steps 3 "${set_options[@]}"
step 2 sequence2-2m "${long[@]}" --sequence-length 2097152 --steps 1 --recompute full "${set_options[@]}"

large=(--preset transnormer-7b --sequence-length 4096 --steps 3)
settings data=2 zero=1
step 2 7b "${large[@]}" --micro-batch 1 --global-batch 2 "${set_options[@]}"
step 2 7b-recomputed "${large[@]}" --micro-batch 2 --global-batch 4 --recompute full "${set_options[@]}"
[ -z "$failed" ] || { echo "two_gpus: failed:$failed" >&2; exit 1; }
