#!/usr/bin/env bash
# Import and export: a checkpoint becomes a Hugging Face folder, and that a checkpoint again, which has the same loss.
#
#   examples/04-import-and-export.sh [FOLDER]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_corpus
make_configuration train.yaml 20
fulmen train train.yaml
fulmen export --checkpoint run/checkpoints --hf exported  # config.json and model.safetensors
ls -l exported
fulmen import --hf exported --output imported              # a checkpoint of step 0, to train on from or to evaluate

loss() { fulmen eval --checkpoint "$1" --data corpus/holdout --sequence-length 128 --json | sed 's/.*"loss_nats":\([^,}]*\).*/\1/'; }
expect_close "$(loss imported)" "$(loss run/checkpoints)" 1e-6 "held-out loss, imported and trained"
