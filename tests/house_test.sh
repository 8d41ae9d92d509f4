#!/usr/bin/env bash
# The rules of the house, checked on the sources themselves: no include and no CMake link climbs a floor, includes are
# written from the root, a file opens with a comment that says what it is for and has at most 600 lines.
#
#   tests/house_test.sh           checks this checkout, then that every rule is noticed when it is broken
#   tests/house_test.sh FOLDER    checks another copy only
set -euo pipefail

# What each folder may include and link: itself and what stands below it. data stands on framework alone; train and
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

# Prints what is wrong; true when nothing is.
check_house() {
  local found
  found=$(cd "$1" && check_includes && check_links && check_files)
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
(cd "$root" && cp -r "${floors[@]}" tests scripts "$copy")
check_house "$copy"
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
echo 'namespace fulmen {}' >"$copy/launch/silent.cpp"
expect 'launch/silent.cpp: does not open with a comment'
printf '#!/bin/sh\ntrue\n' >"$copy/launch/silent.cpp" && mv "$copy/launch/silent.cpp" "$copy/scripts/silent.sh"
expect 'scripts/silent.sh: does not say below its first line'
rm "$copy/scripts/silent.sh"
check_house "$copy"
echo "house_test: the floors hold"
