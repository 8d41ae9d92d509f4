#!/usr/bin/env bash
# A first run: text becomes a corpus, a small model trains on it, is evaluated on text that it has not seen, and writes.
#
#   examples/01-first-run.sh [FOLDER]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

make_corpus
make_configuration train.yaml 60
fulmen train train.yaml

# The loss, compared with a uniform and a unigram model. Lower is better.
fulmen eval --checkpoint run/checkpoints --data corpus/holdout --baseline corpus
fulmen generate --checkpoint run/checkpoints --tokenizer bytes --prompt 'The ' --tokens 60
fulmen inspect run
