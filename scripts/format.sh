#!/usr/bin/env bash
# Formats the C++ and CUDA sources as .clang-format says.
#
#   scripts/format.sh            formats them in place
#   scripts/format.sh --check    changes nothing, and fails with the lines that are not formatted
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
  "") action=(-i) ;;
  --check) action=(--dry-run -Werror) ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac
# Another version formats a few lines in another way.
program=clang-format-14
command -v "$program" >/dev/null || { echo "format: $program is missing; scripts/setup.sh installs it" >&2; exit 2; }
git ls-files -z --cached --others --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh' |
  xargs -0 -n 32 -P "$(nproc)" "$program" "${action[@]}" --style=file
