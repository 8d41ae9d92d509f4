#!/usr/bin/env bash
# The program on a GPU against the same program on the CPU: training, resuming from one on the other, evaluation, generation,
# gradients, ranks that share the GPU, and memory that does not suffice. Ends with 77 where there is no GPU.
export FULMEN_TEST_DEVICE=cuda CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

small='model: {layers: 2, hidden: 64, heads: 2, glu: 96, vocabulary: 300, lrpe_layers: [0]}
data: {path: none, sequence_length: 64}
train: {steps: 1, global_batch: 4, micro_batch: 2}'
echo "$small" >small.yaml
run 1 bench step --config small.yaml --device cuda --json
if grep -q 'no CUDA support\|no CUDA driver\|no GPU' err; then
  echo "No test was run, no GPU: $(head -n 1 err)"
  exit 77
fi
check 'a benchmark of steps' test "$code" = 0
check 'on the GPU, in bf16' grep -q '"device":"GPU 0.*"precision":"bf16, master fp32' out
check 'with its parts' grep -q '"parts":\[{.*"floor_seconds"' out

make_byte_corpus corpus 400
make_configuration good.yaml corpus

# The loss in bf16 on the GPU follows that in fp32 on the CPU; auto is the GPU.
losses() { json "$1/metrics.jsonl" loss_nats; }
# close_losses WHAT RUN OTHER TOLERANCE
close_losses() {
  losses "$2" >got
  losses "$3" >expected
  check "$1" close got expected "$4"
}
dtypes() { "$FULMEN_HERE" inspect "$1" --json | grep -o '"dtype":"[a-z0-9]*"' | sort | uniq -c; }
succeed 1 train good.yaml --set run.directory=gpu --set run.device=auto
check 'the run says where it is' grep -q 'device: GPU 0.*bf16, master fp32, gradients fp32' err
succeed 1 train good.yaml --set run.directory=cpu --set run.device=cpu
check 'twelve steps' test "$(losses gpu | wc -l)" = 12
close_losses 'losses in bf16 and in fp32' gpu cpu 1e-2
check 'both checkpoints hold fp32' diff <(dtypes gpu/checkpoints) <(dtypes cpu/checkpoints)

# Bit for bit from run to run, and across a stop.
succeed 1 train good.yaml --set run.directory=whole --set run.device=cuda --set run.deterministic=true
mkdir pieces && touch pieces/STOP
expect_code 75 1 train good.yaml --set run.directory=pieces --set run.device=cuda --set run.deterministic=true
succeed 1 train good.yaml --set run.directory=pieces --set run.device=cuda --set run.deterministic=true
check 'losses of a run in pieces' diff <(losses whole) <(losses pieces)
check 'weights and moments of a run in pieces' "$HELPERS/compare_tensors" whole/checkpoints/step-00000012/parameters.h5 '' \
  pieces/checkpoints/step-00000012/parameters.h5 '' 0

# From the GPU to two CPU ranks, and from there back.
mkdir there back && touch there/STOP back/STOP
expect_code 75 1 train good.yaml --set run.directory=there --set run.device=cuda
succeed 2 train good.yaml --set run.directory=there --set run.device=cpu --set parallel.tensor=2
close_losses 'losses from the GPU to the CPU' there cpu 1e-2
expect_code 75 2 train good.yaml --set run.directory=back --set run.device=cpu --set parallel.tensor=2
succeed 1 train good.yaml --set run.directory=back --set run.device=cuda
close_losses 'losses from the CPU to the GPU' back cpu 1e-2

# Two ranks on one GPU.
succeed 1 train good.yaml --set run.directory=one --set run.device=cuda --set precision.parameters=fp32
for layout in parallel.tensor=2 parallel.pipeline=2 parallel.data=2; do
  succeed 2 train good.yaml --set "run.directory=two-$layout" --set run.device=cuda --set precision.parameters=fp32 --set "$layout"
  check "$layout: they share the GPU" grep -q 'share a GPU' err
  close_losses "$layout: losses" "two-$layout" one 1e-4
done
refuse 2 parallel.transport share -- train good.yaml --set run.directory=two --set run.device=cuda --set parallel.transport=nccl

# Precisions that make no sense.
refuse 1 precision.master fp64 'set it to fp32' 'precision.parameters to fp64' -- train good.yaml --set run.device=cuda --set precision.master=fp64
refuse 1 precision.gradients fp32 'set it to fp64' -- train good.yaml --set run.device=cuda --set precision.parameters=fp64 \
  --set precision.gradients=fp32

# In fp64 both devices say the same.
for device in cuda cpu; do
  succeed 1 gradients good.yaml --checkpoint cpu/checkpoints --data corpus --output "$device.h5" --set precision.parameters=fp64 \
    --set run.device=$device --json
  json out loss_nats >"$device.loss"
  succeed 1 eval --checkpoint gpu/checkpoints --data corpus --precision fp64 --device $device --json
  json out loss_nats >>"$device.loss"
  "$FULMEN_HERE" generate --checkpoint gpu/checkpoints --prompt 'The ship' --tokenizer bytes --temperature 0 --tokens 40 \
    --precision fp64 --device $device --json 2>err | sed 's/"tokens_per_second".*//' >"$device.text"
done
check 'losses in fp64' close cuda.loss cpu.loss 1e-10
check 'gradients in fp64' "$HELPERS/compare_tensors" cuda.h5 /grads cpu.h5 /grads 1e-9
check 'text in fp64' diff cuda.text cpu.text
check 'of forty tokens' grep -q '"tokens":\[\([0-9]*,\)\{39\}[0-9]*\]' cuda.text

# In bf16, the default, nearly.
succeed 1 eval --checkpoint gpu/checkpoints --data corpus --dump-logits logits-gpu.h5 --json
json out loss_nats >got
succeed 1 eval --checkpoint gpu/checkpoints --data corpus --device cpu --dump-logits logits-cpu.h5 --json
json out loss_nats >expected
check 'the loss in bf16' close got expected 5e-3
check 'logits in bf16' "$HELPERS/compare_tensors" logits-gpu.h5 /logits logits-cpu.h5 /logits 5e-2
succeed 1 generate --checkpoint gpu/checkpoints --prompt 'The ship' --tokenizer bytes --tokens 20
check 'the prompt leads the text' grep -q '^ *The ship' out
succeed 1 bench decode --checkpoint gpu/checkpoints --tokens 20 --json
check 'decoding on the GPU' grep -q '"device":"GPU 0' out

# More than any GPU has.
refuse 1 'GPU memory' 'could not be had' weights -- bench step --preset transnormer-175b --device cuda

finish
