#!/usr/bin/env bash
# The rules of the house, checked on the sources themselves. No include and no CMake link climbs a floor, no header includes
# itself by way of others, includes are written from the root. A file opens with a comment that says what it is for and has
# at most 600 lines, a line of C++ or CUDA at most 120 columns, a function at most 60 lines. Only a family's own folder and
# its adapter in infer/ name it. Documents, comments and messages are in plain English.
#
#   tests/house_test.sh           checks this checkout, then that every rule is noticed when it is broken
#   tests/house_test.sh FOLDER    checks another copy only
set -euo pipefail

# The folders that each folder may include and link: itself and the folders below it. data stands on framework alone; train and
# infer stand side by side.
declare -A may=(
  [framework]="framework"
  [kernels]="framework kernels"
  [parallel]="framework kernels parallel"
  [model]="framework kernels parallel model"
  [checkpoint]="framework kernels parallel model checkpoint"
  [data]="framework data"
  [train]="framework kernels parallel model checkpoint data train"
  [infer]="framework kernels parallel model checkpoint data infer"
  [launch]="framework kernels parallel model checkpoint data train infer launch"
)
floors=(framework kernels parallel model checkpoint data train infer launch)
most_lines=600
most_columns=120
most_lines_of_function=60
most_words=25

sources_of() { find "$@" -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.sh' \); }

# Includes as "file:line folder/header", the header with its opening quote or bracket.
includes_of() {
  sources_of "$1" | sort | xargs -r awk 'match($0, /^[ \t]*#[ \t]*include[ \t]*["<][^">]+/) {
    header = $0; sub(/^[^"<]*/, "", header); sub(/[">][^">]*$/, "", header); print FILENAME ":" FNR, header }'
}

check_includes() {
  local folder place header
  for folder in "${floors[@]}" tests; do
    while read -r place header; do
      if [[ $header == '<'* ]]; then
        [ ! -f "${header:1}" ] || echo "$place: ${header:1} is the project's own: write it in quotes"
        continue
      fi
      header=${header:1}
      if [[ ! -f $header || $header == *./* ]]; then
        echo "$place: \"$header\" is not written from the root of the project"
      elif [[ $folder != tests && " ${may[$folder]} " != *" ${header%%/*} "* ]]; then
        echo "$place: $folder/ includes \"$header\"; it may include from: ${may[$folder]}"
      fi
    done < <(includes_of "$folder")
  done
}

# No header includes itself by way of others.
check_circles() {
  local folder
  for folder in "${floors[@]}"; do includes_of "$folder"; done |
    sed -nE 's/^([^:]*\.c?u?h):[0-9]+ "(.*)$/\1 \2/p' | tsort 2>&1 >/dev/null |
    sed -n '/^tsort: [^ ]*\.c\?u\?h$/ { s/^tsort: //; s/$/: is in a circle of includes/; p }'
}

check_links() {
  local folder linked
  for folder in "${floors[@]}"; do
    # Comments apart; the name of the floor itself stands without the prefix.
    for linked in $(sed 's/#.*//' "$folder/CMakeLists.txt" | grep -oE '\bfulmen_[a-z]+' | sed 's/^fulmen_//' | sort -u); do
      [ "$linked" = floor ] && continue
      [[ " ${may[$folder]} " == *" $linked "* ]] ||
        echo "$folder/CMakeLists.txt: links fulmen_$linked; it may link: ${may[$folder]}"
    done
  done
}

# A mixer says which operations it is made of. How they run, on which ranks, and which results are made again is not its business.
check_branches() {
  sources_of model/mixers model/families model/operations | sort | xargs awk '
    match(tolower($0), /communicator|mesh|recomput|overlap|tensor_rank|sequence_rank|data_rank|pipeline_rank|rank\(\)|modelcontext|model_context/) {
      print FILENAME ":" FNR ": names \"" substr($0, RSTART, RLENGTH) "\": branches know no ranks and no layouts (model/branch_executor.h does)" }'
}

check_files() {
  sources_of "${floors[@]}" tests scripts | sort | xargs awk -v most="$most_lines" '
    FNR == 1 && !/^(\/\/ [^ ]|#!|# [^ ])/ { print FILENAME ": does not open with a comment that says what it is for" }
    FNR == 1 { script = /^#!/ }
    FNR == 2 && script && !/^# [^ ]/ { print FILENAME ": does not say below its first line what it is for" }
    FNR == most + 1 { print FILENAME ": has more than " most " lines" }'
  local folder
  for folder in "${floors[@]}"; do
    head -n 1 "$folder/CMakeLists.txt" | grep -q '^# [^ ]' ||
      echo "$folder/CMakeLists.txt: does not open with a comment that says what it is for"
  done
}

# The sources are formatted, so that a few rules find the functions: comments, text and preprocessor lines apart, a brace
# that stands in no function opens one if the words before it have a parameter list.
check_functions() {
  find "${floors[@]}" tests bench -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) | sort |
    xargs awk -v columns="$most_columns" -v lines="$most_lines_of_function" '
    function opens_function(words) {
      if (words ~ /^ *$/) return 1  # after the last brace of a list of initialisers
      return words ~ /\(/ && words !~ /^[^(]*=/ &&
             words !~ /(^| )(namespace|enum|struct|class|union) [A-Za-z_:]* *(final)? *(:.*)?$/
    }
    function close_function() {
      inside = 0
      if (FNR - first < lines) return
      sub(/\(.*/, "", name)
      sub(/.*[ *&]/, "", name)
      print FILENAME ":" first ": " name " has " FNR - first + 1 " lines, more than " lines
    }
    FNR == 1 { depth = inside = directive = 0; head = "" }
    length($0) > columns { print FILENAME ":" FNR ": has " length($0) " columns, more than " columns }
    /^[ \t]*#/ { directive = 1 }
    directive { directive = /\\$/; next }
    {
      line = $0
      gsub(/\\["\047\\]/, "", line)
      gsub(/"[^"]*"/, "\"\"", line)
      gsub(/\047[^\047]\047/, "", line)
      sub(/\/\/.*/, "", line)
      for (i = 1; i <= length(line); ++i) {
        c = substr(line, i, 1)
        if (c == "{") {
          ++depth
          if (!inside && opens_function(head)) { inside = depth; first = FNR; name = head }
          head = ""
        } else if (c == "}") {
          if (inside == depth) close_function()
          --depth
          head = ""
        } else if (c == ";") head = ""
        else if (!inside) head = head c
      }
      head = head " "
    }'
}

# Every folder of model/families/ is a family: its name, "two_words" also as TwoWords and two-words. Comments may name it.
check_families() {
  local folder name camel
  for folder in model/families/*/; do
    name=$(basename "$folder")
    camel=$(sed -E 's/(^|_)([a-z0-9])/\U\2/g' <<<"$name")
    sources_of "${floors[@]}" | grep -vE '^(model/families/|infer/hugging_face/)' | sort |
      xargs awk -v word="(^|[^A-Za-z0-9])(${name//_/[-_]}([^A-Za-z0-9]|\$)|$camel([^a-z]|\$))" -v family="$name" '
        { line = $0; sub(/\/\/.*/, "", line) }
        line ~ word { print FILENAME ":" FNR ": names the family " family ": only model/families/ and infer/hugging_face/ may" }'
  done
}

# Plain English: words that hide what is meant, in documents, comments and messages, and long sentences of documents. A
# sentence of a document has at most 25 words. No sentence begins with "Of" or "What". Prints FILE:LINE of the paragraph.
check_english() {
  local words='besides?|go(es)? by|add(s|ed|ing)? (them |these |it )?up|memory between|(that|those) of|ones|one'\''s'
  words="$words|one (that|which)|the one of|(this|each|every|another|other|next|previous|last|first|second|same|new|old|older|newer) one"
  {
    ls *.md docs/*.md examples/*.md 2>/dev/null || true
    sources_of "${floors[@]}" tests scripts
  } | sort | xargs awk -v most="$most_words" -v columns="$most_columns" -v words="$words" '
    function judge(text, document, cell,    sentence, end, copy, count) {
      gsub(/`[^`]*`/, "code", text)
      while (text != "") {
        end = match(text, /[.?!]["\047)]* +/) ? RSTART + RLENGTH - 1 : length(text)
        sentence = substr(text, 1, end)
        text = substr(text, end + 1)
        if (sentence ~ /^(Of|What) /) print place ": begins with \"" substr(sentence, 1, 30) "\": the subject comes first"
        copy = tolower(sentence)
        gsub(/[^a-z\047-]+/, " ", copy)
        if (match(" " copy " ", " (" words ") ")) print place ": has \"" substr(copy, RSTART, RLENGTH - 2) "\""
        count = gsub(/[^ ]*[A-Za-z0-9][^ ]*/, "x", sentence)
        if (document && count > most && (!cell || sentence ~ /\. *$/))
          print place ": has a sentence of " count " words, more than " most
      }
    }
    function finish() {
      if (paragraph != "") judge(paragraph, document, 0)
      paragraph = ""
    }
    function gather(words) {
      if (paragraph == "") place = FILENAME ":" FNR
      paragraph = paragraph (paragraph == "" ? "" : " ") words
    }
    FNR == 1 { finish(); document = FILENAME ~ /\.md$/; shell = FILENAME ~ /\.sh$/; test = FILENAME ~ /^tests\//; fence = 0 }
    document && !/^\|/ && length > columns { print FILENAME ":" FNR ": has " length " columns, more than " columns }
    document && /^ *```/ { finish(); fence = !fence; next }
    document && fence { next }
    document && (/^ *$/ || /^#/) { finish(); next }
    document && /^\|/ { finish(); n = split($0, cells, "|"); place = FILENAME ":" FNR; for (i = 2; i < n; ++i) { gsub(/^ +| +$/, "", cells[i]); judge(cells[i], 1, 1) }; next }
    document { if (/^ *([-*]|[0-9]+\.) /) { finish(); sub(/^ *([-*]|[0-9]+\.) /, "") } sub(/^ +/, ""); gather($0); next }
    {
      line = $0
      if (shell ? /^ *# / : /^ *\/\/ /) { sub(/^ *(#|\/\/) +/, "", line); gather(line); next }
      finish()
      place = FILENAME ":" FNR
      if (shell) next
      rest = line
      while (!test && match(rest, /"([^"\\]|\\.)*"/)) {
        message = substr(rest, RSTART + 1, RLENGTH - 2)
        rest = substr(rest, RSTART + RLENGTH)
        judge(message, 0, 0)
      }
      gsub(/"([^"\\]|\\.)*"/, "", line)
      if (match(line, /\/\/ /)) judge(substr(line, RSTART + 3), 0, 0)
    }
    END { finish() }'
}

rules=(check_includes check_circles check_links check_files check_functions check_families check_branches check_english)

# Prints what is wrong; true when nothing is.
check_house() {
  local found
  found=$(cd "$1" && for rule in "${rules[@]}"; do "$rule"; done)
  [ -z "$found" ] || { printf '%s\n' "$found"; return 1; }
}

# expect WORDS: the broken copy is refused for what the words say.
expect() {
  local said
  said=$(check_house "$copy") && { echo "house_test: not noticed: $1"; exit 1; }
  grep -qF -- "$1" <<<"$said" || { printf 'house_test: expected "%s", got:\n%s\n' "$1" "$said"; exit 1; }
}

# plant FILE LINE WORDS: with the line at its end, the file is refused.
plant() {
  cp "$copy/$1" "$copy/../kept"
  printf '%s\n' "$2" >>"$copy/$1"
  expect "$3"
  mv "$copy/../kept" "$copy/$1"
}

if [ $# -gt 0 ]; then
  check_house "$1"
  exit
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
check_house "$root"

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
copy=$temporary/house
mkdir "$copy"
(cd "$root" && mkdir "$copy/bench" && cp bench/*.cpp "$copy/bench" && cp -r "${floors[@]}" tests scripts docs README.md "$copy")
check_house "$copy"
rules=(check_includes check_links check_files)
plant framework/tensor.cpp '#include "kernels/gemm.h"' 'framework/ includes "kernels/gemm.h"'
plant parallel/mesh.h '#include "model/stage.h"' 'parallel/ includes "model/stage.h"'
plant data/corpus.cpp '#include "parallel/mesh.h"' 'data/ includes "parallel/mesh.h"'
plant train/trainer.cpp '#include "infer/decoder.h"' 'train/ includes "infer/decoder.h"'
plant infer/decoder.cpp '  #  include "train/trainer.h"' 'infer/ includes "train/trainer.h"'
plant kernels/cpu/gemm.cpp '#include "norm.h"' '"norm.h" is not written from the root'
plant framework/text.h '#include <kernels/gemm.h>' "kernels/gemm.h is the project's own"
plant framework/text.h '#include "framework/../kernels/gemm.h"' 'is not written from the root'
plant tests/golden.h '#include "../framework/tensor.h"' 'is not written from the root'
plant model/CMakeLists.txt 'target_link_libraries(fulmen_model PUBLIC fulmen_train)' 'links fulmen_train'
plant data/CMakeLists.txt 'target_link_libraries(fulmen_data PRIVATE fulmen_kernels)' 'links fulmen_kernels'
plant model/stage.cpp "$(printf '// %s\n' $(seq 600))" 'model/stage.cpp: has more than 600 lines'
rules=(check_circles)
plant framework/tensor.h '#include "framework/execution.h"' 'framework/tensor.h: is in a circle of includes'
rules=(check_branches)
plant model/mixers/gated_linear_unit.cpp '// over the Communicator' 'names "Communicator"'
plant model/families/transnormer/layers.cpp 'int tensor_rank;' 'names "tensor_rank"'
plant model/operations/gated_norm.cpp 'bool overlap;' 'names "overlap"'
rules=(check_functions)
body=$(printf '  ++i;\n%.0s' $(seq 59))
plant model/stage.cpp "$(printf 'int Stage::at(int i) const {\n%s\n}' "$body")" 'at has 61 lines, more than 60'
plant kernels/cuda/norm.cu "$(printf '__global__ void turn(int i)\n    requires true {\n  if (i > 0) {\n%s\n  }\n}' "$body")" 'turn has 63'
plant train/trainer.cpp "$(printf 'Trainer::Trainer(int i)\n    : i_(i), j_{i} {\n%s\n}' "$body")" 'has 61 lines'
plant parallel/mesh.h "$(printf '//%120s' .)" 'has 122 columns, more than 120'
rules=(check_families)
plant launch/main.cpp 'const char* family = "transnormer";' 'names the family transnormer'
plant model/stage.cpp 'void run(const TransnormerConfig&);' 'names the family transnormer'
plant infer/decoder.cpp '#include "model/families/transnormer/config.h"' 'names the family transnormer'
mkdir "$copy/model/families/two_words"
plant train/trainer.cpp '  if (family == "two-words") return;' 'names the family two_words'
plant train/trainer.cpp '  TwoWordsConfig config;' 'names the family two_words'
rmdir "$copy/model/families/two_words"
rules=(check_english)
plant README.md 'Of these, any is enough.' 'README.md:122: begins with "Of these, any'
plant docs/running.md "It has $(printf 'words %.0s' $(seq 24))." 'has a sentence of 26 words, more than 25'
plant docs/running.md "| two | It has $(printf 'words %.0s' $(seq 24)). |" 'has a sentence of 26 words, more than 25'
plant docs/running.md "$(printf '`%119s`' .)" 'has 121 columns, more than 120'
plant train/trainer.h "$(printf '// The memory that lies there is memory\n// between steps.')" 'has "memory between"'
plant train/trainer.cpp 'int more;  // than that of others' 'has "that of"'
plant launch/main.cpp 'const char* text = "sums add up";' 'launch/main.cpp:'
rules=(check_files)
echo 'namespace fulmen {}' >"$copy/launch/silent.cpp"
expect 'launch/silent.cpp: does not open with a comment'
printf '#!/bin/sh\ntrue\n' >"$copy/launch/silent.cpp" && mv "$copy/launch/silent.cpp" "$copy/scripts/silent.sh"
expect 'scripts/silent.sh: does not say below its first line'
rm "$copy/scripts/silent.sh"
check_house "$copy"
echo "house_test: the floors hold"
