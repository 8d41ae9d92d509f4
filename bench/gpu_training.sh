#!/usr/bin/env bash
# A real training run on one GPU: the demo's corpus, a model of 98 M parameters, a wall-clock time. Then the held-out loss of
# its checkpoints, samples, and its last steps on CPU ranks, which go on from the GPU's checkpoint. Run from the checkout's root.
#
#   bench/gpu_training.sh OUTPUT_DIR [SECONDS] [TEXT]     600 seconds; Webster's dictionary (Debian's package dict-gcide)
#
# Takes `fulmen` from PATH, else from build/cuda/bin. OUTPUT_DIR gets summary.txt, curve.txt, samples.txt and the logs.
set -euo pipefail
trap 'echo "gpu_training: line $LINENO failed; see $output/*.txt" >&2' ERR
[ $# -ge 1 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
output=$1 seconds=${2:-600} text=${3:-/usr/share/dictd/gcide.dict.dz}
command -v fulmen >/dev/null || PATH=$PWD/build/cuda/bin:$PATH
command -v fulmen >/dev/null || { echo "gpu_training: no fulmen in PATH or build/cuda/bin: build the cuda preset" >&2; exit 2; }
mkdir -p "$output"
configuration=configs/demo-gpu.yaml
corpus=corpus/demo run=runs/demo-gpu
cpu_ranks=4 cpu_steps=4
number() { sed -n "s/.*\"$2\": *\([-0-9.e+]*\).*/\1/p" <<<"$1"; }

[ -e "$corpus/manifest.yaml" ] || fulmen prepare --input "$text" --output "$corpus" --vocabulary 8000 --holdout 0.005 >"$output/prepare.txt" 2>&1
rm -rf "$run"

# As many steps as fit the time at the measured rate; the CPU takes the last few steps, which the stop leaves.
step=$(number "$(fulmen bench step --config "$configuration" --device cuda --steps 20 --json 2>>"$output/log.txt")" step_seconds)
steps=$(awk -v s="$seconds" -v t="$step" 'BEGIN {print int(0.93 * s / t)}')
started=$SECONDS
fulmen train "$configuration" --set "train.steps=$((steps + cpu_steps))" >"$output/train.txt" 2>&1 &
job=$!
while kill -0 "$job" 2>/dev/null; do
  if [ -e "$run/metrics.jsonl" ] && [ "$(wc -l <"$run/metrics.jsonl")" -ge "$steps" ]; then
    touch "$run/STOP"
    break
  fi
  sleep 0.05
done
code=0
wait "$job" || code=$?
[ "$code" -eq 75 ] || { echo "gpu_training: training ended with $code, expected 75; see $output/train.txt" >&2; exit 1; }
on_gpu=$((SECONDS - started))
done_on_gpu=$(wc -l <"$run/metrics.jsonl")

# The curve: means over hundredths of the run.
awk -v n="$done_on_gpu" -F'[:,}]' '
  { for (i = 1; i < NF; ++i) if ($i ~ /"loss_nats"/) loss = $(i + 1); else if ($i ~ /"tokens"/) tokens = $(i + 1)
    sum += loss; ++count
    if (NR % int(n / 100 + 1) == 0 || NR == n) { printf "%d %d %.4f\n", NR, tokens, sum / count; sum = count = 0 } }
' "$run/metrics.jsonl" >"$output/curve.txt"
for checkpoint in "$run"/checkpoints/step-*; do
  held=$(fulmen eval --checkpoint "$checkpoint" --data "$corpus/holdout" --json 2>>"$output/log.txt")
  printf '%s held-out nats %s bits per byte %s\n' "$(basename "$checkpoint")" "$(number "$held" loss_nats)" "$(number "$held" bits_per_byte)"
done >"$output/held-out.txt"
best=$(sort -k4 -n "$output/held-out.txt" | head -n 1 | cut -d' ' -f1)
for prompt in 'Lightning \Light"ning\, n.' 'Machine \Ma*chine"\, n.' 'To train, v. t.'; do
  printf -- '--- %s\n' "$prompt"
  fulmen generate --checkpoint "$run/checkpoints/$best" --tokens 120 --seed 1 --prompt "$prompt" 2>>"$output/log.txt"
done >"$output/samples.txt"

# The rest on CPU ranks, from the GPU's newest checkpoint, as another layout.
mpirun --oversubscribe --bind-to none -n "$cpu_ranks" fulmen train "$configuration" \
  --set "train.steps=$((steps + cpu_steps))" --set run.device=cpu --set parallel.tensor=2 --set train.micro_batch=4 >"$output/cpu.txt" 2>&1
{
  echo "model: $(grep -o 'model: .*' "$output/train.txt" | head -n 1); corpus: $text"
  echo "on the GPU: $done_on_gpu steps of 32 x 1024 tokens in $on_gpu s, start and checkpoints included"
  echo "median rate: $(sed -n 's/.*"tokens_per_second": *\([0-9.]*\).*/\1/p' "$run/metrics.jsonl" | head -n "$done_on_gpu" | sort -n |
    awk '{a[NR]=$1} END {print int(a[int((NR+1)/2)])}') tokens/s (bench step before: $step s a step)"
  echo "best held-out: $(grep "$best" "$output/held-out.txt")"
  echo "last steps on the GPU, then on $cpu_ranks CPU ranks (fp32, data 2 x tensor 2):"
  tail -n $((cpu_steps + 3)) "$run/metrics.jsonl" | sed 's/,"lr".*//'
} | tee "$output/summary.txt"
