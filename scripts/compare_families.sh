#!/usr/bin/env bash
# Trains a small model of each family on the demo's corpus, with equal parameters and equal tokens, and makes a table of
# held-out bits per byte, training and decoding rate. Run from anywhere; takes `fulmen` from PATH, else from build/.
#
#   scripts/compare_families.sh OUTPUT [OPTION VALUE]...
#
#   OUTPUT                 a folder: table.txt, results.jsonl, the runs and the programs' output
#   --families "A B ..."   names of configs/NAME-30m.yaml (all of them)
#   --seeds "1 2 3"        seeds of initial weights and order (1 2 3)
#   --steps N              training steps (as the configurations say: 600, 20 million tokens)
#   --text FILE            the text (Webster's dictionary, Debian's dict-gcide); not read where corpus/demo exists
#   --set KEY=VALUE        a key for every training, such as run.device=cpu; may be repeated
#
# A run whose result is already in OUTPUT/results.jsonl is not repeated.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'compare_families: %s\n' "$*" >&2; exit 2; }
usage() { sed -n '2,15p' "$0" >&2; exit 2; }

[ $# -ge 1 ] && [[ $1 != -* ]] || usage
case $1 in /*) output=$1 ;; *) output=$here/$1 ;; esac
shift
families=$(basename -s -30m.yaml configs/*-30m.yaml)
seeds="1 2 3" text=/usr/share/dictd/gcide.dict.dz
set_keys=()
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || die "$1 needs a value"
  case $1 in
    --families) families=$2 ;;
    --seeds) seeds=$2 ;;
    --steps) set_keys+=(--set "train.steps=$2") ;;
    --text) text=$2 ;;
    --set) set_keys+=(--set "$2") ;;
    *) usage ;;
  esac
  shift 2
done
command -v fulmen >/dev/null || PATH=$PWD/build/cuda/bin:$PWD/build/cpu/bin:$PATH
command -v fulmen >/dev/null || die "there is no fulmen in PATH or build/: build it first"
for family in $families; do [ -r "configs/$family-30m.yaml" ] || die "there is no configs/$family-30m.yaml"; done

mkdir -p "$output"
results=$output/results.jsonl
touch "$results"
corpus=corpus/demo
if [ ! -e $corpus/manifest.yaml ]; then
  [ -r "$text" ] || die "cannot read $text: install dict-gcide, or name a text with --text"
  fulmen prepare --input "$text" --output $corpus --vocabulary 8000 --holdout 0.005 >"$output/prepare.txt" 2>&1
fi

# The values of a key of JSON objects, one a line; the last of them, and the median.
values() { grep -o "\"$1\": *[-0-9.e+]*" | sed 's/.*: *//'; }
value() { values "$1" | tail -n 1; }
last() { value "$2" <"$1"; }
# The first steps warm up, and a few write checkpoints.
median() { values "$2" <"$1" | sort -g | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }

for seed in $seeds; do
  for family in $families; do
    name=$family-$seed
    grep -q "\"run\": \"$name\"" "$results" && continue
    run=$output/$name
    echo "compare_families: $name" >&2
    fulmen train "configs/$family-30m.yaml" --set "run.directory=$run" --set "run.seed=$seed" "${set_keys[@]}" \
      >"$output/$name-train.txt" 2>&1 || { tail -n 5 "$output/$name-train.txt" >&2; die "training $name failed"; }
    held=$(fulmen eval --checkpoint "$run" --data $corpus/holdout --json 2>"$output/$name-eval.txt")
    decode=$(fulmen bench decode --checkpoint "$run" --json 2>"$output/$name-decode.txt")
    rm -rf "$run/checkpoints"
    metrics=$run/metrics.jsonl
    parameters=$(grep -o '[0-9.]* M parameters' "$output/$name-train.txt" | head -n 1 | cut -d ' ' -f 1)
    {
      printf '{"run": "%s", "family": "%s", "seed": %s, ' "$name" "$family" "$seed"
      printf '"million_parameters": %s, ' "${parameters:?}"
      printf '"tokens": %s, "final_loss_nats": %s, ' "$(last "$metrics" tokens)" "$(last "$metrics" loss_nats)"
      printf '"held_out_bits_per_byte": %s, ' "$(value bits_per_byte <<<"$held")"
      printf '"tokens_per_second": %s, ' "$(median "$metrics" tokens_per_second)"
      printf '"decoded_tokens_per_second": %s}\n' "$(value tokens_per_second <<<"$decode")"
    } >"$output/$name.json"
    cat "$output/$name.json" >>"$results"
  done
done

# Mean over the seeds, and how far apart they are.
awk -F'[:,}]' '
  {
    for (i = 1; i < NF; ++i) {
      key = $i
      gsub(/[ "{]/, "", key)
      field[key] = $(i + 1)
      gsub(/[ "]/, "", field[key])
    }
    f = field["family"]
    if (!(f in n)) order[++families] = f
    b = field["held_out_bits_per_byte"]
    if (n[f] == 0 || b < low[f]) low[f] = b
    if (n[f] == 0 || b > high[f]) high[f] = b
    ++n[f]
    bits[f] += b
    rate[f] += field["tokens_per_second"]
    decode[f] += field["decoded_tokens_per_second"]
    parameters[f] = field["million_parameters"]
    tokens[f] = field["tokens"]
  }
  END {
    printf "%-14s %6s %10s %6s %9s %9s %9s %10s %10s\n", "family", "M par.", "tokens", "seeds", "bits/byte", "lowest",
           "highest", "tokens/s", "decoded/s"
    for (k = 1; k <= families; ++k) {
      f = order[k]
      printf "%-14s %6.2f %10d %6d %9.4f %9.4f %9.4f %10.0f %10.0f\n", f, parameters[f], tokens[f], n[f],
             bits[f] / n[f], low[f], high[f], rate[f] / n[f], decode[f] / n[f]
    }
  }' "$results" | tee "$output/table.txt"
