#!/usr/bin/env bash
# Installs what Fulmen is built with. Does nothing where everything is there already.
#
#   scripts/setup.sh            Debian 12 and Ubuntu 24.04; needs root or sudo only when something is missing
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config git          # to build
  openmpi-bin libopenmpi-dev                                # ranks
  libhdf5-dev hdf5-tools                                    # corpora and checkpoints
  libyaml-cpp-dev libboost-program-options-dev              # configuration and flags
  libspdlog-dev libfmt-dev nlohmann-json3-dev               # messages and JSON
  libdnnl-dev libopenblas-dev                               # matrix products, fp32 and fp64
  libsentencepiece-dev zlib1g-dev libzstd-dev libxxhash-dev # text, compression, checksums
  libgtest-dev                                              # tests
  clang-format-14 clang-tidy-16 libomp-16-dev doxygen       # the sources' form
  clang-14 libclang-rt-14-dev                               # fuzzing
  dict-gcide                                                # the demo's text: Webster's dictionary
)
# For the test of the batch scripts, on virtual nodes. Where there is a Slurm already, it stays as it is.
command -v sbatch >/dev/null || packages+=(slurm-wlm munge)

if ! command -v apt-get >/dev/null; then
  cat >&2 <<'MESSAGE'
setup: this machine has no apt-get. Install or load the equivalents of these, then run cmake --preset cpu:
  a C++20 compiler (GCC 12 or newer), CMake 3.25 or newer, Ninja, pkg-config
  an MPI 3.1 library; HDF5 1.10 or newer (serial, with its pkg-config file named hdf5-serial); yaml-cpp;
  Boost.Program_options; spdlog and fmt; nlohmann-json; oneDNN; OpenBLAS; SentencePiece; zlib; zstd; xxHash; GoogleTest
On a cluster these are usually modules: module load gcc cmake openmpi hdf5 boost openblas onednn ...
MESSAGE
  exit 2
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: everything is installed"
  exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "setup: needs root or sudo to install: ${missing[*]}" >&2; exit 2; }
  as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "setup: done"
