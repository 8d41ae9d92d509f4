#!/usr/bin/env bash
# Builds Fulmen and runs its tests. CI runs this script, and so does a newcomer.
#
#   scripts/test.sh             installs what is missing, checks the sources' form, builds, runs every test, fuzzes each
#                               reader for 20 seconds, and runs the tests without ranks of framework/ and kernels/ again
#                               under the sanitizers; where nvcc is, the CUDA build is compiled too, and its GPU tests
#                               are run where a GPU is
#   scripts/test.sh --fast      only the fast suite (within three minutes on two cores)
#   scripts/test.sh --all [FIRST/SHARES]
#                               also every layout of up to 8 ranks that layout_matrix.cpp knows against one rank: more
#                               than two million, about 700 core hours, in shares of a few minutes each, from share
#                               FIRST of SHARES (0/5000) on
#   PRESET=asan scripts/test.sh with another preset of CMakePresets.json
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${PRESET:-cpu}
selection=()
shares=
case ${1:-} in
  "") ;;
  --fast) selection=(-L fast) ;;
  --all) shares=${2:-0/5000} ;;
  *) sed -n '2,13p' "$0" >&2; exit 2 ;;
esac

scripts/setup.sh
cmake --preset "$preset"
if [ "$preset" = cpu ]; then
  scripts/format.sh --check
  if [ ${#selection[@]} -eq 0 ]; then
    scripts/lint.sh
    doxygen docs/Doxyfile
  fi
fi
cmake --build --preset "$preset"
# Ranks of the tests share the cores; root is who CI is.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

# The CUDA code compiles wherever there is a compiler for it; its tests need a GPU and skip themselves without one.
if [ "$preset" = cpu ] && [ ${#selection[@]} -eq 0 ] && command -v nvcc >/dev/null; then
  cmake --preset cuda
  cmake --build --preset cuda
  ctest --preset cuda -L gpu
fi

# Every reader of outside bytes, on bytes that nobody wrote.
if [ "$preset" = cpu ] && [ ${#selection[@]} -eq 0 ]; then
  scripts/fuzz.sh
  # The kernels and what they stand on, under the address and undefined-behaviour sanitizers. The readers of the floors
  # above have just had them. PRESET=asan scripts/test.sh --fast takes all floors, and ten minutes more.
  cmake --preset asan
  cmake --build --preset asan --target lowest_tests
  ctest --preset asan -L single -R '^(framework|kernels)_'
fi

# Last, so that its summary is what a run ends with.
ctest --preset "$preset" "${selection[@]}"

# The whole product of layouts. It goes on after a share that failed, and fails in the end.
if [ -n "${shares:-}" ]; then
  export OMP_NUM_THREADS=1 OMPI_MCA_btl=self,vader OMPI_MCA_mpi_yield_when_idle=1
  failed=
  for ((share = ${shares%/*}; share < ${shares#*/}; ++share)); do
    echo "layouts, share $share of ${shares#*/}"
    FULMEN_LAYOUTS=$share/${shares#*/} mpirun --oversubscribe -n 8 "build/$preset/bin/layouts_test" --gtest_brief=1 || failed="$failed $share"
  done
  [ -z "$failed" ] || { echo "layouts: shares that failed:$failed of ${shares#*/}" >&2; exit 1; }
fi
