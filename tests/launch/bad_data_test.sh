#!/usr/bin/env bash
# Wrong texts and corpora: one clear message that names the shard, exit code 2, no process left over.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_byte_corpus corpus 800 --shard-tokens 12000
check 'the corpus has several shards' test -e corpus/shard-00002.h5
make_configuration good.yaml corpus
succeed 1 train good.yaml --set train.steps=1
checkpoint=run/checkpoints

# refuse_corpus FOLDER WORD...: train must refuse the corpus alone and on four ranks, and eval, too.
refuse_corpus() {
  local folder=$1
  refuse 1 "${@:2}" -- train good.yaml --set data.path="$folder" --set run.directory=bad_run
  refuse 4 "${@:2}" -- train good.yaml --set data.path="$folder" --set run.directory=bad_run
  refuse 1 "${@:2}" -- eval --checkpoint "$checkpoint" --data "$folder" --json
}

# Texts.
touch empty.txt
refuse 1 'no text' -- prepare --input empty.txt --output new --tokenizer bytes
check 'a refused text leaves no corpus' test ! -e new/manifest.yaml
refuse 1 missing.txt 'no such file' -- prepare --input missing.txt --output new
printf '{"text": "fine"}\n{"text": \n' >broken.jsonl
refuse 1 broken.jsonl 'JSON' -- prepare --input broken.jsonl --output new2 --tokenizer bytes
refuse 1 corpus 'not empty' 'overwrite' -- prepare --input corpus.txt --output corpus --tokenizer bytes
refuse 1 vocabulary -- prepare --input corpus.txt --output new3 --vocabulary 200

# Input that would be misread or passed over is refused or told of.
iconv -f UTF-8 -t UTF-16 corpus.txt >utf16.txt
refuse 1 utf16.txt UTF-16 iconv -- prepare --input utf16.txt --output new4 --tokenizer bytes
refuse 1 utf16.txt UTF-16 iconv -- prepare --input utf16.txt --output new4 --vocabulary 300
mkdir mixed && cp corpus.txt mixed/a.txt && echo '{"text": "abc"}' >mixed/b.JSONL && echo '{"text": " "}' >>mixed/b.JSONL
touch mixed/notes.md mixed/.hidden && ln -s ../mixed mixed/loop && ln -s a.txt mixed/c.txt
succeed 1 prepare --input mixed --output mixed_corpus --tokenizer bytes --json
check 'what was read' grep -q 'input: 1 files of plain text, 1 of JSON lines' err
check 'and counted' grep -q '"input":{"plain_files":1,"json_files":1,"left_out":4,"blank_documents":1}' out
for words in 'not named as text.*mixed/notes.md' 'hidden.*mixed/.hidden' 'another name.*mixed/c.txt (as mixed/a.txt)' \
  '1 documents of JSON lines.*left out'; do
  check "it is said: $words" grep -q "$words" err
done
ln -s /nonexistent/text.jsonl mixed/gone.jsonl
refuse 1 mixed/gone.jsonl 'a link to /nonexistent/text.jsonl' -- prepare --input mixed --output new5 --tokenizer bytes
refuse 1 --vocabulary --tokenizer-model -- prepare --input corpus.txt --output new6 --tokenizer-model x --vocabulary 300
refuse 1 --tokenizer-sample-bytes -- prepare --input corpus.txt --output new6 --tokenizer-model x --tokenizer-sample-bytes 9

# The home folder, also where the shell leaves it.
mkdir home
HOME=$FOLDER/home succeed 1 prepare --input corpus.txt --output='~/corpus' --tokenizer bytes
check 'a corpus at home' test -e home/corpus/manifest.yaml -a ! -e '~'
HOME=$FOLDER/home succeed 1 train good.yaml --set train.steps=1 --set data.path='~/corpus' --set run.directory='~/run'
check 'a run at home' test -e home/run/metrics.jsonl -a ! -e '~'
refuse 1 --output '~noah' 'in full' -- prepare --input corpus.txt --output '~noah/corpus' --tokenizer bytes

printf 'caf\xe9 and more text, again and again and again\n' >latin1.txt
cat corpus.txt >>latin1.txt
succeed 1 prepare --input latin1.txt --output latin1 --vocabulary 300
check 'text that is not UTF-8 is told of' grep -q 'not UTF-8' err
# Two commands start at once; one makes the corpus.
for writer in 1 2; do "$FULMEN_HERE" prepare --input corpus.txt --output both --tokenizer bytes >/dev/null 2>both$writer.err & done
wait
check 'one of two writers goes on' test "$(cat both?.err | grep -c '^fulmen: error')" -le 1
check 'its corpus is whole' "$FULMEN_HERE" inspect both
check 'nothing else is left' test ! -e both.partial

# Another corpus in the place of the trained corpus; the same elsewhere; another tokeniser; a baseline that is larger.
cp -r corpus elsewhere
succeed 1 train good.yaml --set train.steps=2 --set data.path=elsewhere --allow-change train.steps
make_byte_corpus other 500
refuse 1 data.path 'another corpus' -- train good.yaml --set train.steps=3 --set data.path=other --allow-change train.steps
succeed 1 train good.yaml --set train.steps=3 --set data.path=other --allow-change data.path --allow-change train.steps
succeed 1 train good.yaml --set train.steps=1 --set data.path=latin1 --set model.vocabulary=300 --set run.directory=pieces
refuse 1 corpus 'another tokeniser' -- eval --checkpoint pieces/checkpoints --data corpus
refuse 1 baseline 'made with another tokeniser than corpus' -- eval --checkpoint "$checkpoint" --data corpus --baseline latin1

# Folders that are no corpus.
refuse_corpus nowhere nowhere 'no such corpus'
mkdir not_a_corpus
refuse_corpus not_a_corpus not_a_corpus 'manifest.yaml'
cp -r corpus damaged
edit_manifest damaged/manifest.yaml 's/vocabulary: 257/vocabulary: many/'
refuse_corpus damaged damaged/manifest.yaml:3 vocabulary many

# Names of files that lie elsewhere. The tokeniser's would be copied into the run's folder and the checkpoints.
for name in ../evil.sh "$FOLDER/evil.sh" ..; do
  rm -rf damaged && cp -r latin1 damaged
  echo 'a stranger' >evil.sh && cp latin1/tokenizer.model evil.model
  edit_manifest damaged/manifest.yaml "s|file: tokenizer.model|file: $name|"
  refuse_corpus damaged damaged/manifest.yaml tokenizer "$name"
  check 'what lies there is left alone' grep -qx 'a stranger' evil.sh
  rm -rf damaged && cp -r corpus damaged
  edit_manifest damaged/manifest.yaml "s|file: shard-00001.h5|file: $name|"
  refuse_corpus damaged damaged/manifest.yaml 'shards\[1\]' "$name"
done
# A tokeniser that bears the name of a file of the run.
rm -rf damaged && cp -r latin1 damaged && mv damaged/tokenizer.model damaged/STOP
edit_manifest damaged/manifest.yaml 's|file: tokenizer.model|file: STOP|'
succeed 1 train good.yaml --set train.steps=2 --set data.path=damaged --set model.vocabulary=300 --set run.directory=named
check 'it stops nothing' grep -q '^exit_code: 0' named/verdict.yaml
check 'in the run it has the name of a tokeniser' cmp named/tokenizer.model latin1/tokenizer.model
check 'in checkpoints, too' cmp named/checkpoints/step-00000002/tokenizer.model latin1/tokenizer.model

# The program would wait for a file that is not ordinary.
rm -rf damaged && cp -r corpus damaged && rm damaged/shard-00001.h5 && mkfifo damaged/shard-00001.h5
refuse_corpus damaged damaged/shard-00001.h5 'a FIFO'
rm -rf damaged && mkdir damaged && mkfifo damaged/manifest.yaml
refuse_corpus damaged damaged/manifest.yaml 'a FIFO'
refuse 1 damaged/manifest.yaml 'a FIFO' -- inspect damaged
mkfifo waiting.yaml
refuse 1 waiting.yaml 'a FIFO' -- train waiting.yaml

# Shards. The middle shard is damaged, which on four ranks only one rank sees.
damage() {
  rm -rf damaged
  cp -r corpus damaged
}
damage && rm damaged/shard-00001.h5
refuse_corpus damaged damaged/shard-00001.h5 'no such file'
damage && truncate -s 3000 damaged/shard-00001.h5
refuse_corpus damaged damaged/shard-00001.h5 truncated
damage && cp corpus.txt damaged/shard-00001.h5
refuse_corpus damaged damaged/shard-00001.h5 'not an HDF5 file'
damage && cp "$GOLDEN/tnl_small.h5" damaged/shard-00001.h5
refuse_corpus damaged damaged/shard-00001.h5 'no dataset'
damage && cp corpus/shard-00000.h5 damaged/shard-00001.h5
refuse_corpus damaged damaged/shard-00001.h5 'the manifest says'
damage && edit_manifest damaged/manifest.yaml '/shard-00001/s/tokens: [0-9]*/tokens: 999/'
refuse_corpus damaged damaged/shard-00001.h5 'the manifest says 999'
rm -rf damaged && "$HELPERS/make_corpus" damaged 257 --change corpus 15000 65
refuse_corpus damaged damaged/shard-00001.h5 checksum damaged
rm -rf damaged && "$HELPERS/make_corpus" damaged 257 --change corpus 15000 40000
refuse_corpus damaged damaged/shard-00001.h5 'token 40000' 'vocabulary of 257'

# A digit of the manifest, the document ends, the tokeniser: whatever the corpus consists of has a checksum.
damage && sed -i 's/^end_of_document: .*/end_of_document: 255/' damaged/manifest.yaml
refuse_corpus damaged damaged/manifest.yaml checksum
rm -rf damaged && cp -r latin1 damaged && sed 's/a/b/g' latin1/tokenizer.model >damaged/tokenizer.model
for ranks in 1 4; do
  refuse $ranks damaged/tokenizer.model checksum -- train good.yaml --set data.path=damaged --set model.vocabulary=300 --set run.directory=bad_run
done
rm -rf damaged && "$HELPERS/make_corpus" damaged 257 --move-end corpus
refuse_corpus damaged damaged/shard-00000.h5 checksum 'document ends'
succeed 1 inspect corpus --json
check 'nothing of it is unprotected' grep -q '"unprotected":\[\]' out
# In version 1, or without checksums, it still opens, and is not called verified.
damage && edit_manifest damaged/manifest.yaml 's/, document_ends_xxh3: "[0-9a-f]*"//'
succeed 1 inspect damaged --json
check 'what is unprotected is said' grep -q '"unprotected":\["the manifest itself","the document ends of' out
succeed 1 train good.yaml --set data.path=damaged --set train.steps=1 --set run.directory=unprotected
check 'and not called verified' grep -q 'no checksum covers the manifest itself, the document ends of' err
check 'nor anywhere else' test "$(grep -c 'checksums verified' err)" = 0
succeed 1 train good.yaml --set train.steps=1 --set run.directory=protected
check 'a corpus with checksums is' grep -q 'checksums verified' err

# Corpora that do not fit.
"$HELPERS/make_corpus" empty 257 --empty
refuse_corpus empty empty 'no tokens'
make_byte_corpus short 1
refuse_corpus short short 'sample'
refuse 1 model.vocabulary '256 is smaller' 257 -- train good.yaml --set model.vocabulary=256 --set run.directory=bad_run
refuse 4 model.vocabulary '256 is smaller' 257 -- train good.yaml --set model.vocabulary=256 --set run.directory=bad_run
"$HELPERS/make_corpus" large 320 --golden "$GOLDEN/tnl_six_heads.h5"
refuse 1 large 'vocabulary of 320' 257 -- eval --checkpoint "$checkpoint" --data large --sequence-length 64

finish
