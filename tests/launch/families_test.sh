#!/usr/bin/env bash
# Every family through the whole program: weights in by both doors, eval against the golden files, a few steps on ranks,
# decoding, export; and what is refused.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

siblings=$GOLDEN/siblings

# evaluate NAME LENGTH: `imported` against the golden file, in fp64 and in fp32.
evaluate() {
  local precision tolerance
  for precision in fp64:1e-12 fp32:1e-6; do
    IFS=: read -r precision tolerance <<<"$precision"
    succeed 1 eval --checkpoint imported --data corpus --sequence-length "$2" --precision "$precision" --json
    json out loss_nats >got
    "$HELPERS/print_dataset" "$siblings/$1.h5" /loss >expected
    check "$1: the loss in $precision" close got expected "$tolerance"
  done
}

# family NAME VOCABULARY LENGTH MODEL [WORD]: in by --safetensors, with the section `model` that MODEL is. WORD: what an export
# is refused for.
family() {
  rm -rf weights imported again corpus run
  "$HELPERS/make_hugging_face_folder" "$siblings/$1.h5" weights --weights
  "$HELPERS/make_corpus" corpus "$2" --golden "$siblings/$1.h5"
  echo "model: {vocabulary: $2, $4}" >model.yaml
  succeed 1 import --safetensors weights --config model.yaml --output imported
  check "$1: the weights" "$HELPERS/compare_tensors" imported/parameters.h5 /parameters "$siblings/$1.h5" /weights 0
  # The section that import prints is such a section.
  sed -n '/^model:$/,$p' out >printed.yaml
  succeed 1 import --safetensors weights/model.safetensors --config printed.yaml --output again
  check "$1: the section that was printed" "$HELPERS/compare_tensors" again/parameters.h5 '' imported/parameters.h5 '' 0
  evaluate "$1" "$3"
  # Four steps on, on two ranks, and a text from there.
  {
    cat printed.yaml
    echo "data: {path: corpus, sequence_length: $3}"
    echo 'train: {steps: 4, global_batch: 4, micro_batch: 2, optimizer: {lr: 1e-3}}'
    echo "run: {directory: $FOLDER/run}"
  } >run.yaml
  succeed 2 train run.yaml --resume imported --set parallel.sequence=2
  succeed 1 generate --checkpoint run --prompt '1 2 3' --tokens 5
  check "$1: eight ids, the prompt first" grep -Eq '^1 2 3( [0-9]+){5}$' out
  [[ -z ${5:-} ]] || refuse 1 "$5" 'cannot be exported' -- export --checkpoint run --hf none
}

family llama 320 70 'family: llama, layers: 3, hidden: 96, heads: 6, kv_heads: 2, head_width: 16, glu: 160'
family llama_tied 256 131 'family: llama, layers: 2, hidden: 64, heads: 4, glu: 176, tied: true, norm_epsilon: 1e-5'
family gpt2 256 64 'family: gpt, layers: 2, hidden: 64, heads: 4, positions: 160'
refuse 1 'sequence-length' '160 learned positions' -- eval --checkpoint imported --data corpus --sequence-length 161
refuse 1 '160 learned positions' -- generate --checkpoint imported --prompt '1 2' --tokens 200
family gpt1_post_norm 256 64 'family: gpt, layers: 2, hidden: 64, heads: 4, positions: 160, norm_place: after'
family retnet 256 64 'family: retnet, layers: 3, hidden: 64, heads: 4, value_width: 128, glu: 112, head_norm_epsilon: 1e-12' head_norm_gain
family gla 128 64 'family: gla, layers: 2, hidden: 48, heads: 4, glu: 64'
family minimax 256 50 'family: minimax, layers: 4, hidden: 64, heads: 4, kv_heads: 2, layer_types: [linear, linear, linear, softmax], experts: 4, expert_glu: 96, router_loss: 0.01'
succeed 2 train run.yaml --resume none --set parallel.expert=2 --set "run.directory=$FOLDER/experts"
succeed 1 train run.yaml --resume none --set "run.directory=$FOLDER/dense" --set model.experts=0 --set model.expert_glu=0 --set model.glu=96
refuse 1 model.experts 'cannot be exported' -- export --checkpoint dense --hf none
refuse 3 parallel.expert '3 ranks do not divide the 4 items' -- train run.yaml --set "run.directory=$FOLDER/third" --set parallel.expert=3 --set train.global_batch=6

# Folders that transformers wrote, in and out.
for name in llama gpt2 gpt1_post_norm minimax; do
  rm -rf imported exported again
  succeed 1 import --hf "$siblings/$name-hf" --output imported
  check "$name: the weights of its folder" "$HELPERS/compare_tensors" imported/parameters.h5 /parameters "$siblings/$name.h5" /weights 0
  succeed 1 export --checkpoint imported --hf exported
  succeed 1 import --hf exported --output again
  check "$name: out and in again" "$HELPERS/compare_tensors" again/parameters.h5 '' imported/parameters.h5 '' 0
done

# changed NAME SED: the folder of a model with its config.json changed.
changed() {
  rm -rf changed none
  cp -r "$siblings/$1-hf" changed
  sed -i "$2" changed/config.json
}
changed llama 's/"llama"/"llama9"/'
refuse 1 'model_type is "llama9"' 'llama' -- import --hf changed --output none
changed llama 's/"hidden_act"/"quantization_config": {"bits": 4}, "hidden_act"/'
refuse 1 quantization_config -- import --hf changed --output none
changed llama 's/"rope_type": "default"/"rope_type": "yarn", "factor": 4.0/'
refuse 1 'yarn' 'llama3' -- import --hf changed --output none
changed llama 's/"tie_word_embeddings": false/"tie_word_embeddings": true/'
refuse 1 'lm_head.weight' -- import --hf changed --output none
changed minimax 's/"num_local_experts": 4/"num_local_experts": 5/'
refuse 1 'block_sparse_moe' -- import --hf changed --output none
changed minimax 's/"attention_dropout"/"rotary_dim": 8, "attention_dropout"/'
refuse 1 rotary_dim -- import --hf changed --output none

# A section that is wrong, or not alone.
echo 'model: {family: llama, layers: 2, hidden: 64, vocabulary: 256, heads: 4, glu: 176, layer_types: [linear]}' >bad.yaml
refuse 1 layer_types 'minimax' -- import --safetensors weights --config bad.yaml --output none
echo 'model: {family: minimax, layers: 3, hidden: 64, vocabulary: 256, heads: 4, glu: 176, layer_types: [linear, softmax]}' >bad.yaml
refuse 1 'names 2 layers, the model has 3' -- import --safetensors weights --config bad.yaml --output none
echo 'model: {family: llama, layers: 2, hidden: 64, vocabulary: 256, heads: 4, kv_heads: 3, glu: 176}' >bad.yaml
refuse 1 kv_heads 'does not divide' -- import --safetensors weights --config bad.yaml --output none
refuse 1 'needs --config' -- import --safetensors weights --output none
refuse 1 'either --hf or --safetensors' -- import --output none

finish
