#!/usr/bin/env bash
# Runs clang-tidy, with the checks of .clang-tidy, on the C++ sources that differ from a base. CUDA sources are left out:
# clang-tidy 16 does not know this CUDA.
#
#   scripts/lint.sh              against the branch main; on main itself, against the commit before
#   scripts/lint.sh BASE         against another commit
#   scripts/lint.sh --all        all sources: about an hour on two cores
#   PRESET=debug scripts/lint.sh with the commands of another preset's build folder (cpu), which must be configured
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in -?*) [ "$1" = --all ] || { sed -n '2,8p' "$0" >&2; exit 2; } ;; esac
program=clang-tidy-16  # older versions cannot read the standard library's views
command -v "$program" >/dev/null || { echo "lint: $program is missing; scripts/setup.sh installs it" >&2; exit 2; }
commands=build/${PRESET:-cpu}/compile_commands.json
[ -e "$commands" ] || { echo "lint: $commands is missing; run cmake --preset ${PRESET:-cpu}" >&2; exit 2; }

base_commit() {
  local main
  for main in origin/main main; do
    git rev-parse -q --verify "$main^{commit}" >/dev/null || continue
    main=$(git merge-base HEAD "$main")
    [ "$main" = "$(git rev-parse HEAD)" ] || { echo "$main"; return; }
  done
  git rev-parse -q --verify HEAD^
}

# A header is checked through the source that it is declared for, or else through some source that includes it.
source_of() {
  case $1 in
    *.cpp) echo "$1" ;;
    *.h)
      if [ -e "${1%.h}.cpp" ]; then echo "${1%.h}.cpp"; else git grep -lF "#include \"$1\"" -- '*.cpp' | head -n 1; fi ;;
  esac
}

if [ "${1:-}" = --all ]; then
  changed=$(git ls-files '*.cpp')
else
  base=${1:-$(base_commit)} ||
    { echo "lint: there is no commit to compare with (a shallow clone?); scripts/lint.sh --all checks everything"; exit 0; }
  changed=$(git diff --name-only --diff-filter=d "$base" -- '*.h' '*.cpp'
            git ls-files --others --exclude-standard -- '*.h' '*.cpp')
fi

# Without the precompiled headers, which are the compiler's own.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
sed -E 's/ -Winvalid-pch//; s/ -include [^ ]*cmake_pch\.hxx//' "$commands" >"$folder/compile_commands.json"
sources=$(for file in $changed; do source_of "$file"; done | sort -u)
# Sources that this preset does not compile have no command: they belong to another backend.
sources=$(for file in $sources; do ! grep -qF "\"$PWD/$file\"" "$commands" || echo "$file"; done)
echo "lint: $(wc -w <<<"$sources") sources"
[ -z "$sources" ] || xargs -n 1 -P "$(nproc)" "$program" --quiet -p "$folder" <<<"$sources"
