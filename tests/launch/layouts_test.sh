#!/usr/bin/env bash
# The layout changes nothing: the gradient of every parameter and the losses of a few steps, in fp64, equal one rank's.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 600
# Tensor sizes divide neither the vocabulary nor the GLU, numbers of stages not the layers.
cat >six.yaml <<END
model: {family: transnormer, layers: 5, hidden: 48, heads: 6, glu: 101, vocabulary: 257, lrpe_layers: [0, 3]}
precision: {parameters: fp64}
data: {path: corpus, sequence_length: 70}
train:
  steps: 5
  global_batch: 8
  micro_batch: 1
  optimizer: {lr: 1e-2}
  schedule: {kind: linear, warmup_steps: 1}
run: {directory: one}
END

succeed 1 train six.yaml --set train.micro_batch=8
json one/metrics.jsonl loss_nats >losses
json one/metrics.jsonl grad_norm >norms
check 'five steps' test "$(wc -l <losses)" = 5
succeed 1 gradients six.yaml --checkpoint one/checkpoints --output one.h5 --json
json out grad_norm >norm

# The arguments of a layout: RANKS KEY=VALUE...
arguments_of() {
  arguments=()
  local value
  for value in "$@"; do arguments+=(--set "$value"); done
}

gradients() {
  arguments_of "${@:2}"
  succeed "$1" gradients six.yaml --checkpoint one/checkpoints --output many.h5 --json "${arguments[@]}"
  check "gradients on $*" "$HELPERS/compare_tensors" many.h5 '' one.h5 '' 1e-10
  json out grad_norm >got
  check "gradient norm on $*" close got norm 1e-10
  rm -f many.h5
}

train() {
  arguments_of "${@:2}"
  rm -rf many
  succeed "$1" train six.yaml --set run.directory=many "${arguments[@]}"
  json many/metrics.jsonl loss_nats >got
  check "losses on $*" close got losses 1e-10
  json many/metrics.jsonl grad_norm >got
  check "norms on $*" close got norms 1e-9
}

gradients 1 train.micro_batch=4
gradients 8 parallel.data=8
gradients 3 parallel.tensor=3
gradients 3 parallel.pipeline=3 'parallel.stages=[1, 3, 1]'
gradients 4 parallel.pipeline=4 train.micro_batch=4
gradients 4 parallel.pipeline=4 'parallel.stages=[2, 1, 1, 1]' parallel.schedule=gpipe train.micro_batch=4
gradients 6 parallel.tensor=3 parallel.pipeline=2 train.micro_batch=2
gradients 8 parallel.data=2 parallel.tensor=2 parallel.pipeline=2
gradients 6 parallel.data=2 parallel.pipeline=3 parallel.schedule=gpipe train.micro_batch=2

gradients 3 parallel.sequence=3
gradients 8 parallel.sequence=8 parallel.overlap=none train.micro_batch=4
gradients 8 parallel.sequence=2 parallel.tensor=2 parallel.pipeline=2 parallel.overlap=sequence train.micro_batch=2
gradients 4 parallel.data=4 parallel.zero=1 parallel.zero_group=node
gradients 8 parallel.data=2 parallel.tensor=2 parallel.pipeline=2 parallel.zero=2 train.micro_batch=2
gradients 4 parallel.data=2 parallel.sequence=2 parallel.zero=3 parallel.zero_group=2

train 4 parallel.tensor=2 parallel.data=2
train 6 parallel.sequence=3 parallel.data=2
train 4 parallel.data=4 parallel.zero=3 parallel.overlap=weights
check 'the map of shards' grep -q 'shards: 4' many/shard_map.yaml
train 6 parallel.tensor=3 parallel.pipeline=2
train 5 parallel.pipeline=5 train.micro_batch=2
check 'no bubble of one stage' test "$(json one/metrics.jsonl bubble | wc -w)" = 0
# Both bubbles in the log and in each line of the metrics, as shares of a step.
for setting in 'parallel.schedule=interleaved parallel.chunks=2 parallel.recompute=full' 'parallel.schedule=zero-bubble parallel.overlap=none'; do
  # shellcheck disable=SC2086
  gradients 2 parallel.pipeline=2 $setting train.micro_batch=2
  # shellcheck disable=SC2086
  train 2 parallel.pipeline=2 $setting train.micro_batch=2
  for key in bubble predicted_bubble; do
    json many/metrics.jsonl "$key" >got
    check "$key of five steps" test "$(awk '$1 > 0 && $1 < 1' got | wc -l)" = 5
  done
  check 'the bubble in the log' grep -q 'bubble: .* measured .* predicted' err
done

# A benchmark holds the step against the same schedule with its passes as measured: between the work of one rank and what the
# machine's noise can add.
succeed 2 bench step --device cpu --micro-batch 1 --global-batch 4 --sequence-length 64 --set parallel.pipeline=2 --set parallel.schedule=zero-bubble --json
json out step_seconds >got
json out ideal_step_seconds >ideal
json out ideal_bubble >bubble
check 'the step and its ideal' awk -v ideal="$(cat ideal)" '{exit !(ideal > 0.2 * $1 && ideal < 5 * $1)}' got
check 'the bubble of the ideal' awk '{exit !($1 > 0 && $1 < 1)}' bubble
succeed 1 bench step --device cpu --micro-batch 1 --sequence-length 64 --json
check 'no ideal of one stage' grep -q '"ideal_step_seconds":null' out

# Evaluation, too.
succeed 1 eval --checkpoint one/checkpoints --data corpus --precision fp64 --json
json out loss_nats >loss
tokens=$(json out tokens)
succeed 3 eval --checkpoint one/checkpoints --data corpus --precision fp64 --json
json out loss_nats >got
check 'evaluation on data 3' close got loss 1e-12
check 'as many tokens' test "$(json out tokens)" = "$tokens"
succeed 4 eval --checkpoint one/checkpoints --data corpus --precision fp64 --json --tensor 2 --pipeline 2 --micro-batch 7
json out loss_nats >got
check 'evaluation on tensor 2 x pipeline 2' close got loss 1e-12
succeed 6 eval --checkpoint one/checkpoints --data corpus --precision fp64 --json --sequence 3
json out loss_nats >got
check 'evaluation on sequence 3 x data 2' close got loss 1e-12
check 'as many tokens again' test "$(json out tokens)" = "$tokens"

finish
