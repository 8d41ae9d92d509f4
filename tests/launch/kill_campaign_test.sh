#!/usr/bin/env bash
# Kills one rank, or all, at random moments of runs on several layouts and starts them again, until they have come to
# their end: losses and checkpoints then have the bits of a run without kills.
#   tests/launch/kill_campaign_test.sh [KILLS [SEED]]      (10 kills; FULMEN=program, else build/cpu/bin/fulmen)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export FULMEN=${FULMEN:-$here/build/cpu/bin/fulmen} SOURCE=${SOURCE:-$here} GOLDEN=${GOLDEN:-$here/tests/data/golden}
export HELPERS=${HELPERS:-$here/build/cpu/tests/launch} MPIEXEC=${MPIEXEC:-$(command -v mpiexec)}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
source "$here/tests/launch/lib.sh"
kills=${1:-10}
seed=${2:-$(date +%s)}
RANDOM=$((seed % 32768))
echo "$kills kills, seed $seed"

layouts=(
  '1 rank|1|'
  'data 2, ZeRO 1|2|--set parallel.zero=1'
  'tensor 2 x pipeline 2|4|--set parallel.tensor=2 --set parallel.pipeline=2'
  'sequence 2, full recomputation|2|--set parallel.sequence=2 --set parallel.recompute=full'
  'data 2 x pipeline 2, zero-bubble, ZeRO 3|4|--set parallel.pipeline=2 --set parallel.schedule=zero-bubble --set parallel.zero=3'
  'llama, sequence 2|2|--set model.family=llama --set parallel.sequence=2'
  'MiniMax, expert 2 x pipeline 2|4|--set model.family=minimax --set model.layer_types=[linear,softmax,linear,softmax] --set model.experts=4 --set model.expert_glu=48 --set model.glu=0 --set parallel.expert=2 --set parallel.pipeline=2'
)
steps=24
make_byte_corpus corpus 400
make_configuration good.yaml corpus

# start FOLDER: the layout's run in the background. Sets `process`.
start() {
  local launcher=()
  ((ranks > 1)) && launcher=("$MPIEXEC" --allow-run-as-root --oversubscribe -n "$ranks")
  # shellcheck disable=SC2086
  "${launcher[@]}" "$FULMEN_HERE" train good.yaml --set train.steps=$steps --set checkpoint.every=2 --set checkpoint.keep=2 \
    --set run.directory="$FOLDER/$1" $arguments >"$1.out" 2>"$1.err" &
  process=$!
}

# Waits for the run to end, at most two minutes. Sets `code`.
await_end() {
  local attempt
  for ((attempt = 0; attempt < 1200; ++attempt)); do
    kill -0 $process 2>/dev/null || break
    sleep 0.1
  done
  kill -0 $process 2>/dev/null && { fail "$name: still running after two minutes" "$1.err"; kill -9 $process; }
  wait $process 2>/dev/null
  code=$?
}

# The state of a finished run: losses and norms by step, and the checksums of the last checkpoint's files. Not the checksum of
# its manifest, which has the name of the run folder.
state_of() {
  paste -d' ' <(json "$1/metrics.jsonl" step) <(json "$1/metrics.jsonl" loss_nats) <(json "$1/metrics.jsonl" grad_norm)
  grep '{file: .*xxh3' "$1/checkpoints/step-$(printf %08d $steps)/manifest.yaml"
}

compare_with_reference() {
  checks=$((checks + 3))
  ((code == 0)) || fail "$name: exit code $code of a run that was not killed" run.err
  state_of run >run.state
  (($(grep -c xxh3 run.state) > ranks)) || fail "$name: a checkpoint without the checksums of its files" run.state
  if diff reference.state run.state >difference; then
    equal=$((equal + 1))
  else
    fail "$name: not the bits of the run without kills" difference
  fi
}

# Kills with SIGKILL: one rank, or all of them.
strike() {
  local pids victim
  mapfile -t pids < <(leftover_processes)
  ((${#pids[@]} > 0)) || return 1
  if ((RANDOM % 2 == 0)); then
    victim=${pids[RANDOM % ${#pids[@]}]}
    what='one rank'
    kill -9 "$victim" 2>/dev/null
  else
    what='all ranks'
    kill -9 "${pids[@]}" 2>/dev/null
  fi
}

done_kills=0 equal=0
for ((i = 0; i < ${#layouts[@]}; ++i)); do
  IFS='|' read -r name ranks arguments <<<"${layouts[i]}"
  share=$((kills * (i + 1) / ${#layouts[@]} - kills * i / ${#layouts[@]}))
  ((share > 0)) || continue
  rm -rf reference run
  begun=$(date +%s%3N)
  start reference
  await_end reference
  ((code == 0)) || fail "$name: the run without kills ended with $code" reference.err
  milliseconds=$(($(date +%s%3N) - begun))
  state_of reference >reference.state
  for ((killed = 0; killed < share; )); do
    start run
    wait_for=$(((RANDOM * 32768 + RANDOM) % milliseconds))
    for ((waited = 0; waited < wait_for; waited += 20)); do
      kill -0 $process 2>/dev/null || break
      sleep 0.02
    done
    what=
    if strike; then
      killed=$((killed + 1)) done_kills=$((done_kills + 1))
      printf 'kill %d: %s, %s after %d ms, %s steps done\n' $done_kills "$name" "$what" "$waited" \
        "$(json run/metrics.jsonl step 2>/dev/null | tail -n 1)"
    fi
    await_end run
    no_one_left "$name, $what"
    ((code == 0)) || continue
    compare_with_reference  # the kill came too late
    milliseconds=$((waited + 20))  # runs are shorter now than the reference was
    rm -rf run
  done
  start run  # to the end
  await_end run
  compare_with_reference
done
echo "$done_kills kills; $equal runs came to their end with the bits of the run without"
checks=$((checks + 1))
((done_kills == kills)) || fail "$done_kills kills instead of $kills"
finish
