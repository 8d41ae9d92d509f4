# A real Slurm of virtual nodes on a single machine, for tests: every node is a slurmd with its own host name and /dev/shm,
# so that MPI sees as many hosts. It has its own configuration, ports and munge, and so leaves another Slurm here alone.
#
# Run it where root and mounts are the caller's own (slurm_test.sh gives it fresh namespaces): what was started dies with them.
#
# shellcheck shell=bash

# The programs that a cluster needs; prints the first missing program.
cluster_missing() {
  local program
  for program in munged slurmctld slurmd sbatch srun scontrol scancel unshare mount; do
    command -v "$program" >/dev/null || { echo "$program"; return; }
  done
}

# cluster_free_ports COUNT: that many free TCP ports, below the range that outgoing connections take.
cluster_free_ports() {
  local taken port found=0
  taken=$(awk 'FNR > 1 { sub(".*:", "", $2); print $2 }' /proc/net/tcp /proc/net/tcp6 2>/dev/null)
  for ((port = 12000 + RANDOM % 10000; found < $1; ++port)); do
    grep -qix "$(printf %04X "$port")" <<<"$taken" && continue
    echo "$port"
    found=$((found + 1))
  done
}

# cluster_up FOLDER NODES CPUS: starts it and exports SLURM_CONF; nodes are n1, n2, ... Non-zero, with the logs, if it fails.
cluster_up() {
  local folder=$1 nodes=$2 cpus=$3 node ports
  mapfile -t ports < <(cluster_free_ports $((nodes + 1)))
  mkdir -p "$folder"/{ctld,log}
  chmod 711 "$folder"
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge.seed" >"$folder/log/munged.start" 2>&1 || {
    cat "$folder/log/munged.start"
    return 1
  }

  {
    cat <<END
ClusterName=fulmen-test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/ctld
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/ctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=10
SchedulerParameters=sched_interval=5,bf_interval=5
SlurmdParameters=config_overrides
TmpFS=$folder/tmp/%n
END
    for ((node = 1; node <= nodes; ++node)); do
      echo "NodeName=n$node NodeHostname=n$node NodeAddr=127.0.0.1 Port=${ports[node]} CPUs=$cpus RealMemory=4000 State=UNKNOWN"
    done
    echo "PartitionName=batch Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP"
  } >"$folder/slurm.conf"
  export SLURM_CONF=$folder/slurm.conf

  slurmctld -f "$SLURM_CONF" >"$folder/log/slurmctld.start" 2>&1
  for ((node = 1; node <= nodes; ++node)); do
    mkdir -p "$folder"/{spool,tmp}/n"$node"
    unshare --mount --uts sh -c "mount -t tmpfs shm /dev/shm; hostname n$node; exec slurmd -f '$SLURM_CONF' -N n$node" \
      >"$folder/log/slurmd-n$node.start" 2>&1
  done
  for _ in {1..60}; do
    [[ $(sinfo -h -t idle -o %D 2>/dev/null | awk '{ sum += $1 } END { print sum + 0 }') == "$nodes" ]] && return
    sleep 0.5
  done
  echo 'the nodes did not come up:'
  tail -n 20 "$folder"/log/*
  return 1
}
