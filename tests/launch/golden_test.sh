#!/usr/bin/env bash
# The authors' own model through the whole program: import, eval, gradients and training against the golden files, export.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# golden NAME LAYERS HIDDEN HEADS GLU VOCABULARY BATCH LENGTH STEPS: makes the folders `hf`, `imported` and `corpus`, and
# golden.yaml, whose every step trains on the whole corpus.
golden() {
  file=$GOLDEN/$1.h5 length=$8
  rm -rf hf hf_head imported imported_head corpus
  "$HELPERS/make_hugging_face_folder" "$file" hf
  "$HELPERS/make_hugging_face_folder" "$file" hf_head --with-head
  "$HELPERS/make_corpus" corpus "$6" --golden "$file"
  cat >golden.yaml <<END
model: {family: transnormer, layers: $2, hidden: $3, heads: $4, glu: $5, vocabulary: $6}
precision: {parameters: fp64}
data: {path: corpus, sequence_length: $8, shuffle: false}
train:
  steps: $9
  global_batch: $7
  micro_batch: 1
  optimizer: {lr: 3e-3, betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1}
  schedule: {kind: cosine, warmup_steps: 2, min_lr: 3e-4}
  clip: 1.0
run: {directory: $FOLDER/run_$1}
END
  succeed 1 import --hf hf --output imported
  succeed 1 import --hf hf_head --output imported_head
  check "$1: the weights" "$HELPERS/compare_tensors" imported/parameters.h5 /parameters "$file" /weights 0
  check "$1: with the head as well" "$HELPERS/compare_tensors" imported_head/parameters.h5 '' imported/parameters.h5 '' 0
}

expect_loss() {
  json out loss_nats >got
  echo "$2" >expected
  check "$1" close got expected "$3"
}

evaluate() {
  local loss
  loss=$("$HELPERS/print_dataset" "$file" /loss)
  succeed 1 eval --checkpoint imported --data corpus --sequence-length "$length" --precision fp64 --json --dump-logits logits.h5
  expect_loss "$1: the loss in fp64" "$loss" 1e-12
  check "$1: all logits" "$HELPERS/compare_tensors" logits.h5 /logits "$file" /logits 1e-6
  rm logits.h5
  succeed 1 eval --checkpoint imported --data corpus --sequence-length "$length" --json
  expect_loss "$1: the loss in fp32" "$loss" 1e-6
  succeed 1 gradients golden.yaml --checkpoint imported --output gradients.h5 --json
  expect_loss "$1: the loss with the gradients" "$loss" 1e-12
  check "$1: all gradients" "$HELPERS/compare_tensors" gradients.h5 /grads "$file" /grads 1e-6
  rm gradients.h5
}

# train_golden NAME RANKS ARGUMENTS...
train_golden() {
  local folder=run_$1 values loss
  rm -rf "$folder"
  succeed "$2" train golden.yaml --resume imported "${@:3}"
  for values in loss:loss_nats:1e-10 grad_norm:grad_norm:1e-10 lr:lr:1e-12; do
    IFS=: read -r dataset key tolerance <<<"$values"
    json "$folder/metrics.jsonl" "$key" >got
    "$HELPERS/print_dataset" "$file" "/train/$dataset" | head -n "$(wc -l <got)" >expected
    check "$1 on $2 ranks: as many steps" test "$(wc -l <got)" = "$("$HELPERS/print_dataset" "$file" /train/grad_norm | wc -l)"
    check "$1 on $2 ranks: $key" close got expected "$tolerance"
  done
  check "$1 on $2 ranks: the final weights" "$HELPERS/compare_tensors" \
    "$(echo "$folder"/checkpoints/step-*)/parameters.h5" /parameters "$file" /train/final 1e-6
  loss=$("$HELPERS/print_dataset" "$file" /train/loss | tail -n 1)
  succeed 1 eval --checkpoint "$folder/checkpoints" --data corpus --precision fp64 --json
  expect_loss "$1 on $2 ranks: the loss after the last step" "$loss" 1e-10
}

golden tnl_six_heads 2 96 6 160 320 1 333 1
evaluate tnl_six_heads
golden tnl_wide 4 128 8 256 512 8 64 10
evaluate tnl_wide
train_golden tnl_wide 4 --set parallel.tensor=2
golden tnl_small 3 64 4 192 256 2 70 20
evaluate tnl_small
train_golden tnl_small 1
train_golden tnl_small 4 --set parallel.tensor=2 --set parallel.pipeline=2 --set 'parallel.stages=[2, 1]'

# Without a tokeniser, prompts and texts are token ids.
succeed 1 generate --checkpoint imported --prompt '1 2 3' --tokens 5
check 'eight ids, the prompt first' grep -Eq '^1 2 3( [0-9]+){5}$' out
refuse 1 256 'vocabulary\|token id' -- generate --checkpoint imported --prompt '1 2 256'
refuse 1 hello 'token id' -- generate --checkpoint imported --prompt hello

# Out again and in again, in one file and in several.
for bytes in 5368709120 100000; do
  rm -rf exported again
  succeed 1 export --checkpoint run_tnl_small/checkpoints --hf exported --shard-bytes $bytes
  succeed 1 import --hf exported --output again
  check 'exported and imported' "$HELPERS/compare_tensors" again/parameters.h5 /parameters \
    "$(echo run_tnl_small/checkpoints/step-*)/parameters.h5" /parameters 0
done
check 'the second export has an index' test -e exported/model.safetensors.index.json

finish
