#!/usr/bin/env bash
# Builds Fulmen and runs its tests. What CI runs, and what a newcomer runs.
#
#   scripts/test.sh             installs what is missing, builds, runs every test; where nvcc is, the CUDA build is compiled
#                               too, and its GPU tests are run where a GPU is
#   scripts/test.sh --fast      only the fast suite (within three minutes on two cores)
#   PRESET=asan scripts/test.sh with another preset of CMakePresets.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${PRESET:-cpu}
selection=()
case ${1:-} in
  "") ;;
  --fast) selection=(-L fast) ;;
  *) sed -n '2,8p' "$0" >&2; exit 2 ;;
esac

scripts/setup.sh
cmake --preset "$preset"
cmake --build --preset "$preset"
# Ranks of the tests share the cores; root is who CI is.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# The CUDA code compiles wherever there is a compiler for it; its tests need a GPU and skip themselves without one.
if [ "$preset" = cpu ] && [ ${#selection[@]} -eq 0 ] && command -v nvcc >/dev/null; then
  cmake --preset cuda
  cmake --build --preset cuda
  ctest --preset cuda -L gpu
fi

# Last, so that its summary is what a run ends with.
ctest --preset "$preset" "${selection[@]}"
