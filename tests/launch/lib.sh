# Shared by the scripts here: a temporary folder, tiny corpora and configurations, running the program alone and under
# mpirun, and assertions. A script sources this, makes its assertions, and ends with `finish`.
#
# From CTest: FULMEN (the program), HELPERS (folder of make_corpus and the like), GOLDEN (tests/data/golden), MPIEXEC, SOURCE.
set -u
export LC_ALL=C OMP_NUM_THREADS=1
# On the CPU, whatever the build and the machine, but for the script that tests GPUs.
[[ ${FULMEN_TEST_DEVICE:-cpu} == cuda ]] || export CUDA_VISIBLE_DEVICES=
: "${FULMEN:?}" "${HELPERS:?}" "${GOLDEN:?}" "${MPIEXEC:?}" "${SOURCE:?}"

# Every process of this script runs a program inside this folder, so what is left over is known by its path.
FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/fulmen-launch-XXXXXX")
FULMEN_HERE=$FOLDER/fulmen
ln -s "$FULMEN" "$FULMEN_HERE"
cd "$FOLDER" || exit 1

failures=0
checks=0

clean_up() {
  local pid
  for pid in $(leftover_processes); do kill -9 "$pid" 2>/dev/null; done
  cd / && rm -rf "$FOLDER"
}
trap clean_up EXIT

leftover_processes() {
  local file words
  for file in /proc/[0-9]*/cmdline; do
    words=()
    { mapfile -d '' words <"$file"; } 2>/dev/null || continue
    [[ "${words[0]:-}" == "$FULMEN_HERE" ]] && basename "$(dirname "$file")"
  done
}

fail() {
  failures=$((failures + 1))
  echo "FAILED: $1"
  shift
  local file
  for file in "$@"; do
    [[ -s $file ]] || continue
    echo "  --- ${file##*/}"
    sed 's/^/  | /' "$file" | tail -n 40
  done
}

# check WHAT COMMAND...: the command must succeed.
check() {
  local what=$1
  shift
  checks=$((checks + 1))
  "$@" >"$FOLDER/check.out" 2>&1 || fail "$what" "$FOLDER/check.out"
}

finish() {
  echo "$checks checks, $failures failures"
  ((checks > 0 && failures == 0))
  exit
}

# run RANKS ARGUMENTS...: the program, alone (1) or under mpirun. Sets `code`; stdout and stderr are in files `out` and `err`.
# mpirun gives itself as many ranks as asked for whatever the machine has; a hang ends after 60 seconds with code 124.
run() {
  local ranks=$1
  shift
  if ((ranks == 1)); then
    timeout 60 "$FULMEN_HERE" "$@" >"$FOLDER/out" 2>"$FOLDER/err"
  else
    timeout 60 "$MPIEXEC" --allow-run-as-root --oversubscribe -n "$ranks" "$FULMEN_HERE" "$@" >"$FOLDER/out" 2>"$FOLDER/err"
  fi
  code=$?
}

# succeed RANKS ARGUMENTS...: runs, and the exit code must be 0.
succeed() {
  expect_code 0 "$@"
}

# expect_code CODE RANKS ARGUMENTS...
expect_code() {
  local wanted=$1
  shift
  run "$@"
  checks=$((checks + 1))
  ((code == wanted)) || fail "exit code $code instead of $wanted: [$1 ranks] fulmen ${*:2}" "$FOLDER/out" "$FOLDER/err"
  no_one_left "fulmen ${*:2}"
}

no_one_left() {
  local attempt
  for attempt in 1 2 3 4 5 6 7 8 9 10; do
    [[ -z $(leftover_processes) ]] && return
    sleep 0.2
  done
  fail "processes are left over: $1"
}

# refuse RANKS WORD... -- ARGUMENTS...: a user's mistake. The program must end within seconds with exit code 2 and exactly
# one message, which contains every WORD (case matters not).
refuse() {
  local ranks=$1 words=() word message started=$SECONDS
  shift
  while [[ $1 != -- ]]; do
    words+=("$1")
    shift
  done
  shift
  expect_code 2 "$ranks" "$@"
  local said="[$ranks ranks] fulmen $*"
  ((SECONDS - started <= 15)) || fail "took $((SECONDS - started)) s to end: $said"
  (($(grep -c '^fulmen: error' "$FOLDER/err") == 1)) || fail "not exactly one message: $said" "$FOLDER/err"
  # The message and its remedy, without what mpirun adds about the exit code.
  message=$(grep -A 2 '^fulmen: error' "$FOLDER/err" | grep -v '^---\|^MPI_ABORT\|^--$')
  for word in "${words[@]}"; do
    checks=$((checks + 1))
    grep -qi -e "$word" <<<"$message" || fail "the message does not say '$word': $said" "$FOLDER/err"
  done
}

# json FILE KEY: the number or text of a key in a file of one JSON object per line, one per line.
json() {
  sed -n "s/.*\"$2\":\"\\{0,1\\}\\([^,\"}]*\\).*/\\1/p" "$1"
}

# close A B TOLERANCE: two files of numbers, as many each, agreeing relatively line by line.
close() {
  local count
  count=$(wc -l <"$1")
  if ((count == 0 || count != $(wc -l <"$2"))); then
    echo "$count and $(wc -l <"$2") numbers"
    return 1
  fi
  paste "$1" "$2" | awk -v tolerance="$3" '
    function abs(x) { return x < 0 ? -x : x }
    { difference = abs($1 - $2); allowed = tolerance * abs($2)
      if (!(difference <= allowed) || $1 !~ /^[-+0-9.eE]+$/ || $2 !~ /^[-+0-9.eE]+$/) {
        print "line " NR ": " $1 " and " $2; wrong = 1 } }
    END { exit wrong }'
}

# A text of sentences with some regularity and some chance, the same each time. make_text FILE LINES
make_text() {
  awk -v lines="$2" 'BEGIN {
    srand(7)
    split("ship harbour captain lantern river mountain letter garden winter window silver thunder", nouns, " ")
    split("carries follows watches remembers crosses answers hides keeps", verbs, " ")
    for (i = 1; i <= lines; ++i) {
      printf "The %s %s the %s of the %s.\n", nouns[1 + int(rand() * 12)], verbs[1 + int(rand() * 8)],
             nouns[1 + int(rand() * 12)], nouns[1 + int(rand() * 12)]
      if (rand() < 0.2) printf "\n"
    }
  }' >"$1"
}

# edit_manifest FILE EXPRESSION: changes a manifest as a person or another program would have written it: of version 1,
# without the checksum of itself.
edit_manifest() {
  sed -i -e "$2" -e 's/^version: 2$/version: 1/' -e '$ {/^xxh3:/d}' "$1"
}

# make_byte_corpus FOLDER LINES [PREPARE OPTIONS...]: a vocabulary of 257 (bytes and the end of a document).
make_byte_corpus() {
  make_text "$1.txt" "$2"
  succeed 1 prepare --input "$1.txt" --output "$1" --tokenizer bytes "${@:3}"
}

# make_configuration FILE CORPUS: a model of four layers and four heads that trains in a moment.
make_configuration() {
  cat >"$1" <<END
model: {family: transnormer, layers: 4, hidden: 32, heads: 4, glu: 64, vocabulary: 257}
data: {path: $2, sequence_length: 64}
train:
  steps: 12
  global_batch: 8
  micro_batch: 1
  optimizer: {lr: 1e-2}
  schedule: {kind: cosine, warmup_steps: 2, min_lr: 1e-3}
checkpoint: {every: 0}
run: {directory: $FOLDER/run}
END
}

# Ends the script with 77, which CTest takes for skipped, where there are fewer than two GPUs.
require_two_gpus() {
  run 1 doctor --json
  local gpus
  gpus=$(grep -o '"gpus":\[[^]]*\]' out | grep -o '"name"' | wc -l)
  ((gpus >= 2)) && return
  echo "No test was run, no GPU for each of two ranks: there are $gpus"
  exit 77
}
