#!/usr/bin/env bash
# An evaluation gives no result that is none; and targets that do not count.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 60
make_configuration good.yaml corpus
succeed 1 train good.yaml --set train.steps=3

# Weights with a NaN, in the middle of the file: the tied matrices are at its ends.
succeed 1 export --checkpoint run/checkpoints --hf exported
size=$(stat -c %s exported/model.safetensors)
printf '\xff\xff\xff\x7f' | dd of=exported/model.safetensors bs=1 seek=$((size / 8 * 4)) conv=notrunc status=none
succeed 1 import --hf exported --output damaged
for ranks in 1 2; do
  expect_code 3 $ranks eval --checkpoint damaged --data corpus --json
  check 'no result' test ! -s out
  check 'one message that says what the loss is' test "$(grep -c '^fulmen: error.*the loss is .*nan' err)" = 1
done

# A baseline of other tokens.
succeed 1 prepare --input corpus.txt --output pieces --vocabulary 300
refuse 1 --baseline 'another tokeniser' -- eval --checkpoint run/checkpoints --data corpus --baseline pieces
succeed 1 prepare --input corpus.txt --output others --vocabulary 306
succeed 1 train good.yaml --set data.path=pieces --set model.vocabulary=300 --set train.steps=1 --set run.directory=run-pieces
refuse 1 --baseline 'another tokeniser' -- eval --checkpoint run-pieces/checkpoints --data pieces --baseline others
succeed 1 eval --checkpoint run-pieces/checkpoints --data pieces --baseline pieces --json
check 'the baseline of its own' grep -q unigram_nats out

# While a run deletes old checkpoints.
rm -rf run
"$FULMEN_HERE" train good.yaml --set train.schedule.kind=constant --set train.steps=1000000000 --set checkpoint.every=1 \
  --set checkpoint.keep=1 >run.out 2>run.err &
process=$!
for attempt in {1..300}; do [[ -e run/checkpoints/step-00000003 ]] && break; sleep 0.1; done
for attempt in 1 2 3 4 5 6; do
  checks=$((checks + 1))
  timeout 60 "$FULMEN_HERE" eval --checkpoint run/checkpoints --data corpus --json >out 2>err || fail 'eval during a run' err
done
touch run/STOP
wait $process
check 'the run was not disturbed' test $? = 75
check 'checkpoints did vanish meanwhile' test "$(json run/metrics.jsonl step | tail -n 1)" -gt 10

# A batch without a target that counts: every second token is a document's end, behind which no target counts.
yes a | head -n 40 >lone.txt
succeed 1 prepare --input lone.txt --output lone --tokenizer bytes --document-separator line
for ranks in 1 2; do
  rm -rf run
  succeed $ranks train good.yaml --set data.path=lone --set data.sequence_length=1 --set data.shuffle=false \
    --set train.global_batch=1 --set parallel.pipeline=$ranks --set train.steps=4 --set checkpoint.every=1 --set checkpoint.keep=0
  check 'no loss of 0' diff <(json run/metrics.jsonl loss_nats | sed 's/^[0-9].*/some/') <(printf 'some\nnull\nsome\nnull\n')
  check 'no norm either' test "$(json run/metrics.jsonl grad_norm | grep -c null)" = 2
  check 'it is said' test "$(grep -c 'none of its targets counts' err)" = 2
  for step in 1 2 3; do succeed 1 export --checkpoint run/checkpoints/step-0000000$step --hf step-$step-$ranks; done
  check 'nothing is learned from it' cmp step-{1,2}-$ranks/model.safetensors
  differs() { ! cmp -s "$@"; }
  check 'but from the next' differs step-{2,3}-$ranks/model.safetensors
done
"$HELPERS/make_corpus" single 257 --single 50
refuse 1 'none of its targets counts' -- eval --checkpoint run/checkpoints --data single
refuse 1 'none of the targets' -- gradients good.yaml --data single --set data.sequence_length=4 --set train.global_batch=1 --output g.h5

finish
