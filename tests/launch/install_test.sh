#!/usr/bin/env bash
# cmake --install: what it puts where, that an installed program finds its files wherever the prefix is moved to, and that
# the installed batch script finds the installed program. The version stands in one place.
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

build=$(cd "$(dirname "$FULMEN")/.." && pwd)
check 'installs' cmake --install "$build" --prefix "$FOLDER/first"
mv first moved
for file in bin/fulmen share/fulmen/slurm/train.sh share/fulmen/slurm/train_175b.sh; do
  check "$file is a program" test -x "moved/$file"
done
check 'every configuration' diff -r "$SOURCE/configs" moved/share/fulmen/configs
check 'what changed' cmp "$SOURCE/CHANGELOG.md" moved/share/doc/fulmen/CHANGELOG.md
check 'the licence' cmp "$SOURCE/LICENSE" moved/share/doc/fulmen/LICENSE

version=$(sed -n 's/^## \([0-9.]*\).*/\1/p' "$SOURCE/CHANGELOG.md" | head -n 1)
check "the program is the CHANGELOG's newest version" grep -q "^fulmen $version (commit " <(moved/bin/fulmen --version)

mkdir elsewhere
cd elsewhere || exit 1
check 'says where its files are' grep -qF "\"shared_files\":\"$FOLDER/moved/share/fulmen\"" <(../moved/bin/fulmen doctor --json)
../moved/bin/fulmen train configs/demo.yaml --set parallel.data=1 --set parallel.pipeline=1 --set data.path=nowhere >out 2>err
check 'a user error' test $? = 2
check 'reads the installed configuration' grep -qF "configuration: $FOLDER/moved/share/fulmen/configs/demo.yaml" err
check 'and goes on to its corpus' grep -q 'nowhere' err
mkdir configs
echo 'model: {layers: -1}' >configs/demo.yaml
../moved/bin/fulmen train configs/demo.yaml >out 2>err
check 'a file of the same name here comes first' grep -q 'model.layers' err
../moved/bin/fulmen train configs/no-such.yaml >out 2>err
check 'no such file anywhere' grep -q 'configs/no-such.yaml: cannot be read: No such file' err

# The batch script under a Slurm that only answers and notes what it is to start.
mkdir slurm_stub
cat >slurm_stub/scontrol <<END
#!/bin/sh
case "\$*" in
  "show job "*) echo "   Command=$FOLDER/moved/share/fulmen/slurm/train.sh configs/demo.yaml" ;;
  "show hostnames"*) echo node1 ;;
esac
END
cat >slurm_stub/srun <<'END'
#!/bin/sh
case "$*" in
  --mpi=list) echo 'MPI plugin types are... none pmix' ;;
  --version) echo 'slurm 0' ;;
  *) echo "$@" >srun.arguments ;;
esac
END
chmod +x slurm_stub/*
cp ../moved/share/fulmen/configs/demo.yaml configs/demo.yaml
cp ../moved/share/fulmen/slurm/train.sh spooled.sh  # sbatch runs a copy
PATH=$PWD/slurm_stub:$PATH SLURM_JOB_ID=1 SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=node1 SLURM_SUBMIT_DIR=$PWD FULMEN= \
  bash spooled.sh configs/demo.yaml --set run.directory=run >out 2>&1
check 'starts the installed program' grep -qF "$FOLDER/moved/share/fulmen/../../bin/fulmen train configs/demo.yaml" srun.arguments
cd ..
finish
