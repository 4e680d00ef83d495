#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Many processes start, train, save; one dies, the others go on from the checkpoint, to the losses of one rank. Each has O(log P)
# TCP connections. Usage: many_ranks_test.sh CADRE RANKS MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"
# shellcheck source=tests/launch/ranks.sh
source "$(dirname "$0")/ranks.sh"
num_ranks=$2 mpirun=("${@:3}") out=""
time_limit=540

[[ "$("${mpirun[0]}" --version)" =~ Open\ MPI|OpenRTE ]] || { echo "needs Open MPI's --enable-recovery"; exit 77; }
mpirun+=(--enable-recovery)
run=("$folder/run.toml" "model.n_routed_experts=$num_ranks" "train.batch=$num_ranks" train.schedule=constant train.eval_batches=1
  checkpoint.every=5 checkpoint.keep=100 exchange.strategy=flat exchange.deadline_s=120)

alone train "${run[@]}" train.steps=15 out="$folder/alone"
succeeded "one rank"

now_ms() { date +%s%3N; }
begin=$(now_ms)
start_ranks "$num_ranks" "${run[@]}" train.steps=1000 recover=survivors out="$folder/many"
until_logged 1
started=$(now_ms)
until_logged 5
stepped=$(now_ms)
until_saved
saved=$(now_ms)

# Connections of every rank, those to the launcher too.
log=0
for ((p = num_ranks; p > 1; p = (p + 1) / 2)); do log=$((log + 1)); done
most=$((2 * log + 4))
mapfile -t pids < <(pgrep -P "$ranks_pid")
((${#pids[@]} == num_ranks)) || fail "${#pids[@]} processes"
ss -tnpH state established >"$folder/sockets"
worst=0
for pid in "${pids[@]}"; do
  sockets=$(grep -c "pid=$pid," "$folder/sockets" || true)
  ((sockets >= 2)) || fail "process $pid has $sockets connections"
  ((sockets <= worst)) || worst=$sockets
done
((worst <= most)) || fail "$worst connections of a rank, at most $most are allowed"

died=$(now_ms)
kill -KILL "$(pid_of_rank $((num_ranks / 2)))"
until_said "resumed after step"
resumed=$(now_ms)
from=$(sed -n 's/.*resumed after step \([0-9]*\).*/\1/p' "$output" | tail -n 1)
until_logged $((from + 5))
kill -USR1 "$ranks_pid"
ends_with 0
says "$((num_ranks - 1)) ranks continue" "stopped by a signal"
paste <(losses "$folder/many" | head -n $((from + 5))) <(losses "$folder/alone" | head -n $((from + 5))) | head -n 15 |
  awk 'NF != 2 || ($1 - $2)^2 > (1e-5 * $1)^2 { exit 1 }' || fail "the losses are not those of one rank"

printf '%d ranks: first step after %.1f s, four more in %.1f s, saved after %.1f s, at most %d connections a rank (of %d), resumed %.1f s after a death\n' \
  "$num_ranks" "$((started - begin))e-3" "$((stepped - started))e-3" "$((saved - stepped))e-3" "$worst" "$most" "$((resumed - died))e-3"
