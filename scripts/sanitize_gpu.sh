#!/usr/bin/env bash
# The GPU tests under NVIDIA's compute-sanitizer: memcheck on all that run as one process, racecheck on kernels at small sizes.
# Takes a GPU, a build of the cuda preset, and minutes; CTest does not run it.
#
#   scripts/sanitize_gpu.sh OUTPUT_DIR [JOBS [NAME...]]
#
# JOBS (4) at a time share the GPU: each takes some GiB of it, and a tenth of the speed of a test by itself. With NAMEs: those
# jobs only whose names begin so.
#
# BIN: the folder of the test programs (build/cuda/bin). SECONDS_EACH: after which a job counts as failed (600). OUTPUT_DIR gets a
# log for each job and summary.txt, which is printed; the exit code is 0 if every job ran tests and found nothing, 77 without a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -ge 1 ] || { sed -n '2,12p' "$0" >&2; exit 2; }
output=$1 jobs=${2:-4} bin=${BIN:-build/cuda/bin} limit=${SECONDS_EACH:-600}
wanted=("${@:3}")
sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
[ -x "$sanitizer" ] || { echo "sanitize_gpu: no compute-sanitizer: it comes with the CUDA toolkit (COMPUTE_SANITIZER names it)" >&2; exit 2; }
[ -x "$bin/kernels_test" ] || { echo "sanitize_gpu: no test programs in $bin: build the cuda preset, or set BIN" >&2; exit 2; }
nvidia-smi -L >/dev/null 2>&1 || { echo "sanitize_gpu: no GPU: nothing was run" >&2; exit 77; }
mkdir -p "$output"
export FULMEN_TEST_DEVICE=cuda FULMEN_TEST_DATA=${FULMEN_TEST_DATA:-$PWD/tests/data} OMP_NUM_THREADS=2
export FULMEN_TEST_FEW_REPETITIONS=1   # of the same kernels on the same shapes

# job NAME TOOL PROGRAM FILTER [SHARD SHARDS], in the background.
names=() options=
job() {
  local name=$1 tool=$2 program=$3 filter=$4 word found=${#wanted[@]}
  for word in "${wanted[@]}"; do [[ $name != "$word"* ]] || found=0; done
  [ "$found" = 0 ] || return 0
  export GTEST_SHARD_INDEX=${5:-0} GTEST_TOTAL_SHARDS=${6:-1}
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do sleep 0.2; done
  names+=("$name")
  {
    code=0
    timeout -k 5 "$limit" "$sanitizer" --tool "$tool" $options --error-exitcode 9 "$bin/$program" "--gtest_filter=$filter" >"$output/$name.txt" 2>&1 || code=$?
    echo "exit code $code" >>"$output/$name.txt"
  } &
}
sharded() {   # sharded NAME TOOL PROGRAM FILTER SHARDS
  local shard
  for ((shard = 0; shard < $5; ++shard)); do job "$1-$shard" "$2" "$3" "$4" "$shard" "$5"; done
}

# The longest first.
sharded memcheck-model memcheck model_test '-OutOfMemory.*' 12
sharded racecheck-kernels racecheck kernels_test '-Gemm.LargeProducts*' 8   # those are all cuBLASLt's
job racecheck-attention racecheck kernels_linear_attention_test '*SmallCases*'
job memcheck-attention memcheck kernels_linear_attention_test '*'
sharded memcheck-kernels memcheck kernels_test '*' 4
sharded memcheck-train memcheck train_test '*' 2
wait
# It takes all the memory that there is, and is told of the calls that fail.
options='--report-api-errors no'
job memcheck-out-of-memory memcheck model_test 'OutOfMemory.*'
wait

for name in "${names[@]}"; do
  log=$output/$name.txt
  passed=$(grep -c '^\[       OK \]' "$log" || true)
  found=$(grep -ho 'ERROR SUMMARY: .*\|RACECHECK SUMMARY: .*' "$log" | tail -n 1)
  verdict=clean
  grep -q '^exit code 0$' "$log" && [ -n "$found" ] && { [ "$passed" -gt 0 ] || grep -q '0 tests from 0 test suites' "$log"; } || verdict=FAILED
  printf '%-24s %-7s %4d tests  %s  %s\n' "$name" "$verdict" "$passed" "$found" "$(tail -n 1 "$log")"
done | tee "$output/summary.txt"
! grep -q FAILED "$output/summary.txt" && [ -s "$output/summary.txt" ]
