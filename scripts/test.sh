#!/usr/bin/env bash
# Builds Fulmen and runs its tests. What CI runs, and what a newcomer runs.
#
#   scripts/test.sh             installs what is missing, builds, runs every test
#   scripts/test.sh --fast      only the fast suite (within three minutes on two cores)
#   PRESET=asan scripts/test.sh with another preset of CMakePresets.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${PRESET:-cpu}
selection=()
case ${1:-} in
  "") ;;
  --fast) selection=(-L fast) ;;
  *) sed -n '2,7p' "$0" >&2; exit 2 ;;
esac

scripts/setup.sh
cmake --preset "$preset"
cmake --build --preset "$preset"
# Ranks of the tests share the cores; root is who CI is.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
ctest --preset "$preset" "${selection[@]}"
