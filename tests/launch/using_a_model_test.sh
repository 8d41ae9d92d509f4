#!/usr/bin/env bash
# From a text with a SentencePiece vocabulary to a trained model: prepare, train, eval, generate, inspect, export.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_text text.txt 3000
succeed 1 prepare --input text.txt --output corpus --vocabulary 320 --holdout 0.1 --json
check 'the result on one line' test "$(wc -l <out)" = 1
vocabulary=$(sed -n 's/^vocabulary: //p' corpus/manifest.yaml)
check 'the vocabulary asked for' test "$vocabulary" = 320
cat >model.yaml <<END
model: {family: transnormer, layers: 2, hidden: 64, heads: 4, glu: 128, vocabulary: $vocabulary}
data: {path: corpus, sequence_length: 64}
train:
  steps: 60
  global_batch: 16
  micro_batch: 4
  optimizer: {lr: 2e-2}
  schedule: {kind: wsd, warmup_steps: 5, min_lr: 1e-4}
run: {directory: run}
END
succeed 4 train model.yaml --set parallel.tensor=2 --set parallel.pipeline=2

# Evaluation, compared with the baselines.
succeed 1 eval --checkpoint run/checkpoints --data corpus/holdout --baseline corpus --json
check 'the result on one line' test "$(wc -l <out)" = 1
check 'better than the unigram model, and it better than nothing' awk -v loss="$(json out loss_nats)" \
  -v unigram="$(json out unigram_nats)" -v uniform="$(json out uniform_nats)" -v vocabulary="$vocabulary" 'BEGIN {
    difference = uniform - log(vocabulary)
    exit !(loss < 0.8 * unigram && unigram < uniform && difference * difference < 1e-12) }'
check 'bits and perplexity follow from nats' awk -v nats="$(json out loss_nats)" -v bits="$(json out loss_bits)" \
  -v perplexity="$(json out perplexity)" 'BEGIN {
    a = bits * log(2) / nats - 1; b = log(perplexity) / nats - 1; exit !(a * a < 1e-12 && b * b < 1e-12) }'
succeed 1 eval --checkpoint run/checkpoints --data corpus/holdout
check 'for people' grep -q '^loss .* nats .* bits.* perplexity' out
check 'bits per byte' grep -q 'bits per byte' out

# Generation.
generate() { "$FULMEN_HERE" generate --checkpoint run/checkpoints --prompt 'The ship' --json "$@"; }
tokens_of() { sed 's/.*"tokens":\(\[[^]]*\]\).*/\1/'; }
text() { generate --tokens 60 "$@" 2>/dev/null | tokens_of; }
check 'the same seed, the same text' test "$(text --seed 5)" = "$(text --seed 5)"
check 'another seed, another text' test "$(text --seed 5)" != "$(text --seed 6)"
check 'temperature 0 needs no seed' test "$(text --temperature 0 --seed 5)" = "$(text --temperature 0 --seed 6)"
check 'the likeliest token is temperature 0' test "$(text --top-k 1 --seed 5)" = "$(text --temperature 0)"
check 'a tiny top-p, too' test "$(text --top-p 1e-6 --seed 5)" = "$(text --temperature 0)"
check 'fp64 says the same for a while' test "$(generate --tokens 10 --temperature 0 --precision fp64 2>/dev/null | tokens_of)" = \
  "$(generate --tokens 10 --temperature 0 2>/dev/null | tokens_of)"
succeed 1 generate --checkpoint run/checkpoints --prompt 'The ship' --tokens 30
check 'the prompt leads the text' grep -q '^ *The ship' out
check 'learned words follow' grep -Eq 'carries|follows|watches|remembers|crosses|answers|hides|keeps|captain|harbour|lantern' out
for tokens in 50 3000; do
  check "$tokens tokens" "$HELPERS/peak_memory" "peak_$tokens" "$FULMEN_HERE" generate --checkpoint run/checkpoints \
    --prompt 'The ship' --tokens $tokens --temperature 1 --top-p 1
done
check 'memory does not grow with the length' test "$(($(cat peak_3000) - $(cat peak_50)))" -lt 4096
refuse 1 --tokenizer sentencepeice auto -- generate --checkpoint run/checkpoints --prompt x --tokenizer sentencepeice

# Looking inside.
succeed 1 inspect run --json
check 'a run' grep -q '"kind":"run".*"step":60.*step-00000060' out
succeed 1 inspect run/checkpoints --json
check 'a checkpoint' grep -q '"kind":"checkpoint".*"step":60.*"model.embed_tokens.weight"' <(sed 's/parameters\///g' out)
succeed 1 inspect corpus --json
check 'a corpus' grep -q "\"kind\":\"corpus\".*\"vocabulary\":$vocabulary" out
for path in run run/checkpoints corpus; do
  succeed 1 inspect $path
  check "$path for people" grep -q '^kind: ' out
done

# Out and in again: the same model, with its tokeniser.
succeed 1 export --checkpoint run/checkpoints --hf exported
check 'the tokeniser comes along' cmp exported/tokenizer.model corpus/tokenizer.model
succeed 1 import --hf exported --output imported
check 'the imported model says the same' test "$("$FULMEN_HERE" generate --checkpoint imported --prompt 'The ship' \
  --temperature 0 --tokens 60 --json | tokens_of)" = "$(text --temperature 0)"
check 'the same weights' "$HELPERS/compare_tensors" imported/parameters.h5 /parameters \
  "$(echo run/checkpoints/step-*)/parameters.h5" /parameters 0

# The end of a document is the tokeniser's own, there and back; a run's folder stands for its checkpoints.
check 'SentencePiece ends documents with 2' grep -Eq '"eos_token_id": 2,?$' exported/config.json
make_byte_corpus letters 200
make_configuration letters.yaml letters
succeed 1 train letters.yaml --set run.directory=letters-run --set train.steps=1
succeed 1 generate --checkpoint letters-run --prompt 'The ship' --tokens 5 --json
check 'bytes are found without a flag' grep -q '"prompt_tokens":\[84,104,101,32,115,104,105,112\]' out
succeed 1 eval --checkpoint letters-run --data letters --json
check 'of the newest checkpoint' grep -q '"step":1' out
succeed 1 export --checkpoint letters-run --hf letters-exported
check 'bytes end documents with 256' grep -Eq '"eos_token_id": 256,?$' letters-exported/config.json
check 'and have no other such token' test "$(grep -c '"[bp][oa][sd]_token_id": null,' letters-exported/config.json)" = 2

# Names never steer the terminal.
strange=$'import\e[2J\x9b\r'
cp -r imported "$strange"
succeed 1 inspect "$strange"
check 'a name is shown as numbers' grep -qF 'folder: import\x1b[2J\x9b\x0d' out
rm "$strange/manifest.yaml"
refuse 1 'import\\x1b\[2J' -- eval --checkpoint "$strange" --data letters
check 'in messages, too' test "$(cat out err | tr -d '\n\t' | grep -ac '[[:cntrl:]]')" = 0

# An existing file under the name of a result stays, unless it is to be overwritten; a result is whole or not there.
trained=run/checkpoints/step-00000060
sums() { find "$@" -type f -exec md5sum {} + | sort; }
kept() { check "$1 is left as it was" diff <(sums "$1") "$FOLDER/sums"; }
sums $trained >sums
refuse 1 "$trained" 'already' 'overwrite' -- import --hf exported --output $trained
kept $trained
sums exported >sums
refuse 1 exported 'already' 'overwrite' -- export --checkpoint imported --hf exported
kept exported
sums corpus >sums
refuse 1 corpus 'already' 'overwrite' -- prepare --input text.txt --output corpus --tokenizer bytes
kept corpus
succeed 1 train model.yaml --set run.directory=bytes --set train.steps=1 --set run.seed=3
succeed 1 export --checkpoint bytes --hf exported --overwrite
check 'the other model is there' test "$(sums exported | cut -d' ' -f1)" != "$(cut -d' ' -f1 sums)"
succeed 1 export --checkpoint run --hf exported --overwrite
succeed 1 import --hf exported --output imported --overwrite
mkdir mixed && cp exported/* mixed && echo words >mixed/thesis.txt
sums mixed >sums
refuse 1 mixed thesis.txt -- export --checkpoint run --hf mixed --overwrite
kept mixed
echo mine >new.partial
for command in 'import --hf exported --output' 'export --checkpoint run --hf' 'prepare --input text.txt --tokenizer bytes --output'; do
  refuse 1 new.partial 'in the way' -- $command new
  check 'it is still mine' grep -qx mine new.partial
done
succeed 1 import --hf exported --output new --overwrite
check 'asked for, it made way' test -e new/manifest.yaml -a ! -e new.partial

# The files of eval, gradients and bench step.
for command in 'eval --checkpoint run --data corpus/holdout --dump-logits' \
  'gradients model.yaml --checkpoint run --data corpus --output' \
  'bench step --config model.yaml --steps 1 --set train.global_batch=1 --set train.micro_batch=1 --trace'; do
  rm -f result.h5
  succeed 1 $command result.h5
  sums result.h5 >sums
  refuse 1 result.h5 'already' 'overwrite' -- $command result.h5
  kept result.h5
  succeed 1 $command result.h5 --overwrite
  (ulimit -f 4 && run 1 $command full.h5)
  check "a full disk leaves no $command" test ! -e full.h5 -a ! -e full.h5.partial
  mkdir -p folder.h5
  refuse 1 folder.h5 'a folder' -- $command folder.h5 --overwrite
done

# A prepare that was killed is begun again by the same command, or by another.
for copy in $(seq 8); do cat text.txt; done >long.txt
for signal in TERM KILL; do
  rm -rf begun
  "$FULMEN_HERE" prepare --input long.txt --output begun --vocabulary 400 >/dev/null 2>&1 &
  preparing=$!
  for attempt in $(seq 200); do [[ -e begun.partial/begun ]] && break; sleep 0.02; done
  kill -$signal $preparing
  wait $preparing 2>/dev/null
  check "SIG$signal leaves no half corpus" test ! -e begun -a -e begun.partial
  succeed 1 prepare --input text.txt --output begun --tokenizer bytes
  check 'it says what it removed' grep -q 'begun.partial: what an interrupted attempt left is removed' err
  check 'the corpus is whole' "$FULMEN_HERE" inspect begun
  check 'nothing else is left' test ! -e begun.partial
done

# Training goes on from the imported weights as from step 0, with a schedule of its own.
succeed 1 train model.yaml --resume imported --set run.directory=tuned --set train.steps=3
check 'steps from 1' diff <(json tuned/metrics.jsonl step) <(seq 3)
succeed 1 train model.yaml --resume imported --set run.directory=tuned --set train.steps=3
check 'the same command does not begin again' grep -q 'nothing is left to do: the run is at step 3 of 3' err
check 'from where the weights were' awk -v first="$(json tuned/metrics.jsonl loss_nats | head -n 1)" \
  -v last="$(json run/metrics.jsonl loss_nats | tail -n 1)" 'BEGIN { exit !(first < 1.5 * last) }'

finish
