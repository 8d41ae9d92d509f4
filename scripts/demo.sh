#!/usr/bin/env bash
# The main job from text to generated text, on two cores in minutes: tokenise, train on four ranks as data 2 x pipeline 2,
# stop half way, resume as tensor 2 x data 2, evaluate on held-out text, generate.
#
#   scripts/demo.sh             on Webster's dictionary (Debian's package dict-gcide)
#   scripts/demo.sh FILE        on any text (.txt, .jsonl; also .gz, .dz, .zst)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

text=${1:-/usr/share/dictd/gcide.dict.dz}
fulmen=build/cpu/bin/fulmen
corpus=corpus/demo
run=runs/demo

say() { printf '\n== %s\n' "$*"; }
die() { printf 'demo: %s\n' "$*" >&2; exit 2; }

case $text in --help | -h) sed -n '2,6p' "$0"; exit 0 ;; -*) die "there is no option $text: give a text file, or nothing" ;; esac
[ $# = 0 ] || [ -r "$text" ] || die "cannot read $text: give a text file as argument"

say "installing what is missing"
scripts/setup.sh
say "building (a few minutes the first time)"
mkdir -p build
cmake --preset cpu >build/configure.log 2>&1 || { cat build/configure.log >&2; die "configuring failed"; }
cmake --build --preset cpu --target fulmen
[ -r "$text" ] || die "cannot read $text: give a text file as argument"

# Four ranks on whatever cores there are. Root is asked for nothing more; ranks are not tied to single cores.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
[ -t 2 ] && export FULMEN_PROGRESS=bar
ranks=(mpirun --oversubscribe --bind-to none -n)

started=$SECONDS
say "tokenising $text"
rm -rf "$corpus" "$run"
"$fulmen" prepare --input "$text" --output "$corpus" --vocabulary 8000 --holdout 0.005

steps=$(sed -n 's/^  steps: //p' configs/demo.yaml)
say "training as data 2 x pipeline 2, to be stopped half way by SIGUSR1"
"${ranks[@]}" 4 "$fulmen" train configs/demo.yaml &
job=$!
logged_steps() { if [ -e "$run/metrics.jsonl" ]; then wc -l <"$run/metrics.jsonl"; else echo 0; fi; }
until [ "$(logged_steps)" -ge $((steps / 2)) ]; do
  kill -0 "$job" 2>/dev/null || break
  sleep 0.2
done
kill -USR1 "$job" 2>/dev/null || true
code=0
wait "$job" || code=$?
[ "$code" -eq 75 ] || die "expected exit code 75 (stopped with a checkpoint), got $code"
echo "stopped with exit code 75: a checkpoint is there, start me again"

say "resuming as tensor 2 x data 2"
"${ranks[@]}" 4 "$fulmen" train configs/demo.yaml --set parallel.pipeline=1 --set parallel.tensor=2

say "held-out loss, compared with a uniform and a unigram model"
"${ranks[@]}" 2 "$fulmen" eval --checkpoint "$run/checkpoints" --data "$corpus/holdout" --baseline "$corpus"

say "generating"
"$fulmen" generate --checkpoint "$run/checkpoints" --tokens 120 --seed 1 --prompt $'Lightning \\Light"ning\\, n.'
say "done in $((SECONDS - started)) s after the build; the run is in $run, the corpus in $corpus"
