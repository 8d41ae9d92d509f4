#!/usr/bin/env bash
# Wrong checkpoints, and resuming what must not be mixed: one clear message, exit code 2, no process left over.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 400
make_configuration good.yaml corpus
succeed 4 train good.yaml --set train.steps=4 --set parallel.pipeline=2
checkpoint=run/checkpoints/step-00000004

# Missing.
for ranks in 1 4; do
  refuse $ranks nowhere 'checkpoint' -- train good.yaml --resume nowhere --set run.directory=other
  refuse $ranks nowhere 'checkpoint' -- eval --checkpoint nowhere --data corpus
done
refuse 1 nowhere 'checkpoint' -- generate --checkpoint nowhere --prompt x
refuse 1 nowhere 'checkpoint' -- export --checkpoint nowhere --hf exported
refuse 1 nowhere 'folder' -- inspect nowhere
refuse 1 nowhere -- import --hf nowhere --output imported
mkdir empty
refuse 1 empty -- eval --checkpoint empty --data corpus
refuse 1 empty -- import --hf empty --output imported
check 'a refused import leaves nothing' test ! -e imported

# Damaged.
damage() {
  rm -rf damaged
  cp -r "$checkpoint" damaged
}
damage && rm damaged/shard-00001.h5
for ranks in 1 4; do
  refuse $ranks damaged/shard-00001.h5 -- eval --checkpoint damaged --data corpus
  refuse $ranks damaged/shard-00001.h5 -- train good.yaml --resume damaged --set train.steps=4 --set run.directory=other
done
damage && truncate -s -8 damaged/shard-00001.h5
refuse 1 damaged/shard-00001.h5 -- eval --checkpoint damaged --data corpus
damage && edit_manifest damaged/manifest.yaml '/shard-00001/d'
refuse 1 damaged 'shard-00001.h5' 'does not list' -- eval --checkpoint damaged --data corpus
# A folder of checkpoints none of which can be used is not trained over.
cp -r run lost && truncate -s 10 lost/checkpoints/*/manifest.yaml
for ranks in 1 4; do
  refuse $ranks lost/checkpoints 'none of which can be used' -- train good.yaml --set run.directory=lost --set train.steps=4
done
check 'they are left as they were' test "$(ls lost/checkpoints)" = step-00000004
damage && printf '\377' | dd of=damaged/shard-00001.h5 bs=1 seek=5000 conv=notrunc 2>/dev/null
for ranks in 1 4; do
  refuse $ranks damaged/shard-00001.h5 'checksum' -- eval --checkpoint damaged --data corpus
  refuse $ranks damaged/shard-00001.h5 'checksum' -- train good.yaml --resume damaged --set train.steps=4 --set run.directory=other
done
refuse 1 damaged/shard-00001.h5 'checksum' -- generate --checkpoint damaged --prompt x --tokenizer bytes
damage && rm damaged/manifest.yaml
refuse 1 damaged 'no valid checkpoint' -- eval --checkpoint damaged --data corpus
damage && edit_manifest damaged/manifest.yaml 's/^step:.*/step: many/'
refuse 1 damaged step -- eval --checkpoint damaged --data corpus

# A digit of the manifest.
for change in 's/^step: 4/step: 3/' 's/^samples: 32/samples: 33/' 's/^tokens: 2048/tokens: 2049/'; do
  damage && sed -i "$change" damaged/manifest.yaml
  check "$change changes it" test "$(cmp damaged/manifest.yaml $checkpoint/manifest.yaml | wc -l)" = 1
  refuse 1 damaged/manifest.yaml checksum -- train good.yaml --resume damaged --set train.steps=4 --set run.directory=other
done
damage && edit_manifest damaged/manifest.yaml 's/^tokens: 2048/tokens: 2049/'
succeed 1 inspect damaged --json
check 'without one it is said to be unprotected' grep -q '"unprotected":\["the manifest: step, tokens' out
succeed 1 inspect $checkpoint --json
check 'nothing else is' grep -q '"unprotected":\[\]' out
cp -r $checkpoint step-00000009
refuse 1 step-00000009 'step 4' -- eval --checkpoint step-00000009 --data corpus

# A checkpoint of another model.
for other in model.layers=3 model.hidden=64 model.heads=2 model.glu=96 model.vocabulary=300 'model.lrpe_layers=[0, 1]'; do
  key=${other%%=*}
  refuse 1 "$checkpoint" 'another model' "${key#model.}" -- train good.yaml --resume "$checkpoint" --set "$other" --set run.directory=other
done
refuse 4 "$checkpoint" 'another model' layers -- train good.yaml --resume "$checkpoint" --set model.layers=5 --set run.directory=other

# In the run's own folder.
for ranks in 1 4; do
  refuse $ranks run/checkpoints 'already holds' 'delete\|another' -- train good.yaml --resume none
done
for change in train.optimizer.lr=5e-3 train.global_batch=16 data.sequence_length=32 run.seed=2 train.schedule.kind=linear \
  train.clip=0.5 data.shuffle=false precision.parameters=fp64; do
  key=${change%%=*}
  refuse 1 "$key" 'change the training' "allow-change $key" -- train good.yaml --set train.steps=4 --set "$change"
done
refuse 4 train.clip 'change the training' "allow-change train.clip" -- train good.yaml --set train.steps=4 --set train.clip=0.5
refuse 1 train.steps 'change the training' "allow-change train.steps" -- train good.yaml --set train.steps=6
succeed 1 train good.yaml --set train.steps=6 --allow-change train.steps
check 'the difference is printed' grep -q 'train.steps: 4 -> 6' err
check 'it went on from step 4' grep -q 'at step 4' err
check 'steps 1 to 6, once each' diff <(json run/metrics.jsonl step) <(seq 6)
succeed 2 train good.yaml --set train.steps=8 --allow-change train.steps --allow-change train.clip --set train.clip=0.5 --set parallel.tensor=2
check 'the layout may change freely' grep -q 'parallel.tensor: 1 -> 2' err
refuse 1 'allow-change train.clpi' 'did you mean train.clip' -- train good.yaml --set train.steps=8 --allow-change train.clpi

finish
