#!/usr/bin/env bash
# Wrong commands, flags and configurations: one clear message, exit code 2, no process left over.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 400
make_configuration good.yaml corpus

# with TEXT...: the good configuration with lines appended, as bad.yaml.
with() {
  cp good.yaml bad.yaml
  printf '%s\n' "$@" >>bad.yaml
}

# refuse_set RANKS KEY=VALUE WORD...: the good configuration with one override.
refuse_set() {
  refuse "$1" "${@:3}" -- train good.yaml --set "$2"
}

# Commands and flags.
refuse 1 tarin 'did you mean train' -- tarin good.yaml
refuse 4 tarin 'did you mean train' -- tarin good.yaml
refuse 1 nonsense 'fulmen --help' -- nonsense
refuse 1 --resmue 'did you mean --resume' -- train good.yaml --resmue auto
refuse 4 --resmue 'did you mean --resume' -- train good.yaml --resmue auto
refuse 1 CONFIG missing -- train
refuse 1 'too many' -- train good.yaml another.yaml
refuse 1 'key=value' 'train.steps' -- train --set train.steps good.yaml
refuse 1 --data missing -- eval --checkpoint somewhere
refuse 1 --temperature "'hot'" number -- generate --checkpoint x --prompt y --temperature hot
refuse 1 --top-p 'out of range' -- generate --checkpoint x --prompt y --top-p 1.5
refuse 1 --set 'key=value' -- train good.yaml --set train.steps
for command in generate import export inspect prepare; do
  case $command in
    generate) arguments=(--checkpoint x --prompt y) ;;
    import | export) arguments=(--hf x); [[ $command == import ]] && arguments+=(--output y) || arguments+=(--checkpoint y) ;;
    inspect) arguments=(x) ;;
    prepare) arguments=(--input corpus.txt --output y) ;;
  esac
  refuse 2 "$command" 'one process' 'without mpirun' -- "$command" "${arguments[@]}"
done

# The file.
refuse 1 missing.yaml 'no such file' -- train missing.yaml
with 'data: [unclosed'
refuse 1 bad.yaml 'line\|:[0-9]' YAML -- train bad.yaml
refuse 4 bad.yaml 'line\|:[0-9]' YAML -- train bad.yaml
with 'model: {layers: 2}'
refuse 1 bad.yaml model 'twice' -- train bad.yaml
sed 's/steps: 12/stpes: 12/' good.yaml >bad.yaml
refuse 1 bad.yaml:4 train.stpes steps -- train bad.yaml
refuse 4 bad.yaml:4 train.stpes steps -- train bad.yaml
sed 's/^train:/trian:/' good.yaml >bad.yaml
refuse 1 trian 'train' -- train bad.yaml
refuse_set 1 train.micro_bacth=2 train.micro_bacth micro_batch
sed 's/steps: 12/steps: twelve/' good.yaml >bad.yaml
refuse 1 bad.yaml:4 train.steps twelve integer -- train bad.yaml
refuse_set 1 data.shuffle=maybe data.shuffle maybe 'true or false'
refuse_set 1 train.optimizer.betas=0.9 train.optimizer.betas 'list of 2'

# Values out of range, and those not built yet.
refuse_set 1 data.sequence_length=0 data.sequence_length 'out of range' 'allowed: 1'
refuse_set 4 data.sequence_length=0 data.sequence_length 'out of range' 'allowed: 1'
refuse_set 1 train.optimizer.lr=-1 train.optimizer.lr 'out of range'
for key in train.steps checkpoint.every checkpoint.keep run.log_every train.schedule.warmup_steps train.schedule.decay_steps \
  parallel.bucket_elements; do
  refuse_set 1 $key=9223372036854775807 $key 'out of range' 'allowed:'
done
# Each within its range, and too many together: 12 x 2^30 x 2^32 tokens, 2^50 steps of 2^14 tokens, a tensor of 2^62 elements.
refuse 1 'train.steps, train.tokens' 'tokens in all' -- train good.yaml --set train.global_batch=1073741824 --set data.sequence_length=4294967296
refuse 1 'train.steps, train.tokens' 'tokens in all' -- train good.yaml --set train.steps=1125899906842624 --set data.sequence_length=2048
refuse 1 train.micro_batch 'elements' -- train good.yaml --set train.steps=1 --set train.global_batch=1048576 --set train.micro_batch=1048576 \
  --set data.sequence_length=1099511627 --set model.vocabulary=1073741824
refuse_set 1 train.optimizer.lr=.nan train.optimizer.lr
refuse_set 1 train.schedule.kind=cosin train.schedule.kind cosine
refuse_set 1 parallel.recompute=some parallel.recompute selective
refuse_set 1 model.preset=transnormer-385 model.preset transnormer-385m
refuse_set 1 model.family=mamba model.family mamba transnormer
refuse_set 1 parallel.chunks=2 parallel.chunks 'a single pipeline rank'
refuse 2 parallel.chunks 1f1b interleaved -- train good.yaml --set parallel.pipeline=2 --set parallel.chunks=2
refuse_set 1 checkpoint.async=true checkpoint.async 'not built yet'
refuse_set 1 parallel.expert=2 parallel.expert 'does not divide\|do not divide\|divides'
refuse 2 parallel.expert 'the model has none' -- train good.yaml --set parallel.expert=2
refuse_set 1 model.kv_heads=2 model.kv_heads 'llama' 'this model is transnormer'
refuse_set 1 parallel.memory=2 parallel.memory 'not built yet' 'memory layers'
refuse_set 1 parallel.zero=4 parallel.zero 'out of range'
refuse_set 1 parallel.zero_group=some parallel.zero_group 'neither all, node nor a number'
refuse 4 parallel.zero_group 'does not divide the 4 ranks' -- train good.yaml --set parallel.zero=1 --set parallel.zero_group=3
refuse_set 1 parallel.overlap=gradient parallel.overlap "'gradient' is not one of"
refuse 3 parallel.sequence 'samples of 2 tokens' 'at most 2' -- train good.yaml --set parallel.sequence=3 --set data.sequence_length=2

# Devices and precisions. No GPU is visible here (lib.sh), whatever the build and the machine.
refuse 1 run.device 'no CUDA support\|no CUDA driver\|no GPU' 'set it to cpu' -- train good.yaml --set run.device=cuda
refuse 4 run.device 'no CUDA support\|no CUDA driver\|no GPU' -- train good.yaml --set run.device=cuda
refuse 1 --device 'no CUDA support\|no CUDA driver\|no GPU' -- eval --checkpoint x --data corpus --device cuda
refuse 1 --device "'gpu'" 'auto, cpu or cuda' -- generate --checkpoint x --prompt y --device gpu
refuse_set 1 run.device=gpu run.device cuda
refuse_set 1 precision.parameters=bf16 precision.parameters bf16 'needs a GPU'
refuse_set 4 precision.parameters=bf16 precision.parameters bf16 'needs a GPU'
refuse 1 --precision bf16 'needs a GPU' -- generate --checkpoint x --prompt y --precision bf16
refuse 1 --precision "'fp8'" fp32 -- eval --checkpoint x --data corpus --precision fp8
refuse_set 1 precision.master=bf16 precision.master
refuse_set 1 precision.gradients=fp64 precision.gradients fp64 'set it to fp32'
refuse 1 precision.master fp64 -- train good.yaml --set precision.parameters=fp32 --set precision.master=fp64
refuse_set 1 parallel.transport=nccl parallel.transport 'GPU'
refuse_set 4 parallel.transport=nccl parallel.transport 'GPU'
refuse_set 1 parallel.transport=infiniband parallel.transport nccl

# Keys that must be given, and those that exclude each other.
for key in path: global_batch: micro_batch: steps:; do
  sed "s/\\([ {]\\)$key [^,}]*,\\{0,1\\}/\\1/" good.yaml >bad.yaml
  refuse 1 "${key%:}" 'give\|missing\|must' -- train bad.yaml
done
grep -v '^model' good.yaml >bad.yaml
refuse 1 model 'not given\|preset' -- train bad.yaml
refuse 4 model 'not given\|preset' -- train bad.yaml
refuse_set 1 train.tokens=1e6 train.steps train.tokens 'not both'

# Layouts.
refuse 4 parallel '3 ranks' 'has 4' -- train good.yaml --set parallel.tensor=1 --set parallel.pipeline=3 --set parallel.data=1
refuse 4 parallel 3 4 -- train good.yaml --set parallel.tensor=3
refuse 1 parallel 2 1 -- train good.yaml --set parallel.data=2
refuse 3 parallel.tensor 'divide' heads -- train good.yaml --set parallel.tensor=3
refuse 5 pipeline 5 '4 layers' -- train good.yaml --set parallel.pipeline=5
refuse 2 parallel.stages 5 4 -- train good.yaml --set parallel.pipeline=2 --set 'parallel.stages=[2, 3]'
refuse 2 parallel.stages 3 2 -- train good.yaml --set parallel.pipeline=2 --set 'parallel.stages=[1, 1, 2]'
refuse 2 parallel.stages -- train good.yaml --set parallel.pipeline=2 --set 'parallel.stages=[0, 4]'
refuse_set 1 train.micro_batch=3 train.global_batch 'multiple of 3'
refuse 3 train.global_batch 'multiple of 3' -- train good.yaml
refuse_set 1 model.heads=5 model.heads 'divide'
refuse_set 1 model.lrpe_layers=[4] model.lrpe_layers 4

# Places that cannot be written: below a file, and where no folder can be made.
refuse 1 good.yaml/run run.directory 'choose another' -- train good.yaml --set run.directory=good.yaml/run
refuse 4 good.yaml/run run.directory 'choose another' -- train good.yaml --set run.directory=good.yaml/run
refuse 1 /proc/fulmen run.directory -- train good.yaml --set run.directory=/proc/fulmen
refuse 1 corpus.txt/x -- prepare --input corpus.txt --output corpus.txt/x --tokenizer bytes
check 'nothing was trained' test ! -e run/metrics.jsonl

# Something else in the place of a file of the run.
mkdir -p other/metrics.jsonl/inner
for ranks in 1 2; do refuse $ranks other/metrics.jsonl 'a folder' -- train good.yaml --set run.directory=other; done
rm -r other/metrics.jsonl && mkfifo other/metrics.jsonl
refuse 1 other/metrics.jsonl 'a FIFO' -- train good.yaml --set run.directory=other
rm other/metrics.jsonl && mkdir -p other/STOP/inner
expect_code 75 1 train good.yaml --set run.directory=other
check 'a STOP that stays is said' grep -q 'other/STOP cannot be removed' err

OMP_NUM_THREADS= refuse 1 run.threads 'core' -- train good.yaml --set run.threads=65536

# The values that a batch script asks for come from the program, however the file writes it, and nothing is trained.
sed '/^run:/d' good.yaml >odd.yaml
cat >>odd.yaml <<'END'
run:
  &directory "directory": >-   # directory: elsewhere
    a "b"
    {c} # d
END
succeed 1 train odd.yaml --print run.directory
check 'a value as the program reads it' test "$(cat out)" = 'a "b" {c} # d'
succeed 4 train odd.yaml --set run.directory=e --set run.seed=7 --print run.directory
check 'the flags count, and one rank speaks' test "$(cat out)" = e
succeed 1 train good.yaml --print train.optimizer.betas
check 'a list' test "$(cat out)" = '[0.9, 0.95]'
refuse 1 '--print run.directoy' 'did you mean run.directory' -- train good.yaml --print run.directoy
check 'nothing was trained' test ! -e run/metrics.jsonl -a ! -e e

finish
