#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs a program beside a real Slurm cluster whose nodes are namespaces of this machine: each has its own name, address
# and memory, its own slurmd, and two cpus for Slurm to give away, whatever the machine has.
# Usage: slurm.sh NODES -- PROGRAM [ARGUMENT...]
# Exit code: the program's, or 77 with one line of reason where such a cluster cannot be started.
# What this makes lies in namespaces of its own: nothing clashes with another run or with a Slurm of this machine, and the
# kernel takes it away, daemons and all, with the last process, which dies with this script however the script ends.
set -euo pipefail

usage="usage: slurm.sh NODES -- PROGRAM [ARGUMENT...]"
subnet=10.78.0
control=$subnet.254
source_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/support/namespaces.sh
source "$source_folder/namespaces.sh"

# write_configuration FOLDER NODES: what Slurm needs to know, without systemd, cgroups or a database.
write_configuration() {
  local folder=$1 last=$(($2 - 1)) i
  cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=control($control)
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
# Of each node its own: two PMIx plug-ins would otherwise make the same folder.
TmpFS=$folder/tmp.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1
ReturnToService=2
KillWait=4
MinJobAge=300
END
  for ((i = 0; i <= last; ++i)); do
    echo "NodeName=node$i NodeAddr=$subnet.$((i + 1)) CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=2000"
    mkdir "$folder/spool.node$i" "$folder/tmp.node$i"
  done >>"$folder/slurm.conf"
  echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$folder/slurm.conf"
  mkdir "$folder/state"
  # No cgroups are used; the plug-in of version 1 does not look whether there are any.
  echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
}

# start_munge FOLDER: the daemon that vouches for who sends a message, with a key of its own.
start_munge() {
  mkdir -m 755 "$1/munge"
  need dd if=/dev/urandom of="$1/munge/key" bs=128 count=1
  chmod 400 "$1/munge/key"
  need munged --force --key-file="$1/munge/key" --socket="$1/munge/socket" --pid-file="$1/munge/pid" \
    --log-file="$1/munge/log" --seed-file="$1/munge/seed"
}

# all_idle NODES: waits until Slurm has heard of all of them.
all_idle() {
  local tries
  for ((tries = 0; tries < 150; ++tries)); do
    (($(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l) == $1)) && return
    sleep 0.2
  done
  skip "the nodes did not come up: $(sinfo --noheader --Node --long 2>&1 | tail -n 1)"
}

# run_inside FOLDER NODES PROGRAM...: the first process of the new namespaces.
run_inside() {
  local folder=$1 nodes=$2 i pid
  need mount -t tmpfs tmpfs "$folder"
  chmod 755 "$folder"
  hostname control
  make_switch
  write_configuration "$folder" "$nodes"
  export SLURM_CONF=$folder/slurm.conf TMPDIR=$folder
  start_munge "$folder"
  need slurmctld
  for ((i = 0; i < nodes; ++i)); do
    make_host "$folder" "$i" "node$i"
    pid=$(cat "$folder/$subnet.$((i + 1))")
    need nsenter --target "$pid" --net --uts --mount slurmd -N "node$i"
  done
  all_idle "$nodes"
  "${@:3}"
}

if [[ "${1:-}" == --inside ]]; then
  run_inside "${@:2}"
  exit
fi

if (($# < 3)) || [[ ! "$1 $2" =~ ^[1-9]\ --$ ]]; then
  echo "$usage" >&2
  exit 2
fi
need_commands ip unshare nsenter setpriv munged slurmctld slurmd sbatch
((EUID == 0)) || skip "the daemons of Slurm want to be root"
in_namespaces "$source_folder/slurm.sh" "$1" "${@:3}"
