#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Over UCX, Open MPI's layer for InfiniBand and RoCE. Debian switches it off in /etc/openmpi/openmpi-mca-params.conf; the
# options here switch it on for one run. Usage: launch/mpirun/ucx.sh HOSTFILE RUN.toml [key=value ...]
# UCX_TLS=LIST           transports, e.g. rc,sm,self on InfiniBand (default: what UCX finds; `ucx_info -d` lists them)
# UCX_NET_DEVICES=LIST   adapters, e.g. mlx5_0:1
# CADRE_ANY_NETWORK=1    use UCX even without an RDMA adapter, over TCP and shared memory: for trying it out
# CADRE_THREADS=N        threads a rank may use (default 1)
set -euo pipefail

folder=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=launch/program.sh
source "$folder/../program.sh"
need_arguments 2 "$@"
cadre=$(find_cadre "$folder") || exit

options=(--mca pml ucx)
if [[ "${CADRE_ANY_NETWORK:-0}" == 1 ]]; then
  options+=(--mca opal_common_ucx_tls any --mca opal_common_ucx_devices any)
fi
for variable in UCX_TLS UCX_NET_DEVICES; do
  if [[ -v $variable ]]; then options+=(-x "$variable"); fi
done
train_on_hosts "$cadre" "$@"
