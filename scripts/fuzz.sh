#!/usr/bin/env bash
# Builds the fuzzing targets (tests/fuzz/, preset `fuzz`) and runs them, two at a time.
#
#   scripts/fuzz.sh                        each target for 20 seconds; what CI runs
#   scripts/fuzz.sh SECONDS [TARGET...]    longer, or some only: scripts/fuzz.sh 600 corpus_shard
#
# Exit 1 when there is a finding: anything but a UserError leaves a reader, a sanitizer reports, or an input takes more
# than 25 seconds or 512 MiB. The input lies in build/fuzz/findings then; the target's program takes it as an argument.
# New inputs of a run stay in build/fuzz/corpus, where the next run goes on from them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-20}
[[ $seconds =~ ^[0-9]+$ ]] || { sed -n '2,9p' "$0" >&2; exit 2; }
shift $(($# > 0))

cmake --preset fuzz >/dev/null
cmake --build --preset fuzz -- --quiet
all=(build/fuzz/bin/fuzz_*)
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=("${all[@]##*/fuzz_}")

TMPDIR=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
export TMPDIR seconds
trap 'rm -rf "$TMPDIR"' EXIT

run_target() {
  local target=$1 found=build/fuzz/findings/$1 grown=build/fuzz/corpus/$1 log=build/fuzz/$1.log options=()
  mkdir -p "$found" "$grown"
  [ ! -e "tests/fuzz/$target.dict" ] || options+=(-dict="tests/fuzz/$target.dict")
  # zstd takes memory for the window that a frame names, up to the 2 GiB that --long=31 means, and fills what it uses.
  [ "$target" != text_source ] || options+=(-malloc_limit_mb=2304)
  local result="no finding"
  # The HDF5 library itself forgets memory where a file is damaged.
  ASAN_OPTIONS=quarantine_size_mb=16:detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1 \
    LSAN_OPTIONS=suppressions=tests/fuzz/leaks.txt \
    "build/fuzz/bin/fuzz_$target" -max_total_time="$seconds" -timeout=25 -rss_limit_mb=512 -max_len=32768 \
    -print_final_stats=1 -artifact_prefix="$found/" "${options[@]}" "$grown" "tests/fuzz/corpus/$target" \
    >"$log" 2>&1 || result="FINDING, see $log"
  printf '%-20s %9s executions, %5s edges: %s\n' "$target" \
    "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
    "$(grep -o ' cov: [0-9]*' "$log" | tail -n 1 | grep -o '[0-9]*' || echo '?')" "$result"
  [ "$result" = "no finding" ]
}
export -f run_target

printf '%s\n' "${targets[@]}" | xargs -I{} -P 2 bash -c 'run_target {}' ||
  { echo "fuzz: there are findings" >&2; exit 1; }
