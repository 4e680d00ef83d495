#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A long run on 4 ranks with uneven experts whose ranks are stopped for moments at random, beside exchanges of every uneven
# workload on the same cores: its memory stays flat, and its losses are those of a calm run, to the bit.
# Usage: soak.sh SECONDS SEED CADRE MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/../launch/common.sh" "$3"
# shellcheck source=tests/launch/ranks.sh
source "$(dirname "$0")/../launch/ranks.sh"
seconds=$1
RANDOM=$2
mpirun=("${@:4}") out=""
time_limit=$((seconds * 3 + 600))
# No balance loss and no bias: experts stay as uneven as the data makes them.
run=("$folder/run.toml" train.steps=100000000 train.schedule=constant train.eval_every=0 checkpoint.every=500
  log.every=1000000 train.batch=16 model.aux_loss_alpha=0 exchange.strategy=flat)

workloads=(W0 W1 W2 W3 W4 W5 W6 W7) strategies=(flat shared all_gather)
# noise: exchanges of random workloads, one after the other, until it is killed.
noise() {
  while :; do
    "${mpirun[@]}" -n 4 "$program" bench exchange --workload "${workloads[RANDOM % 8]}" --strategy \
      "${strategies[RANDOM % 3]}" --tokens 256 --hidden 64 --experts 8 --top-k 3 --iterations 200 --warmup 0 \
      >>"$folder/noise" 2>&1 || echo "FAILED $?" >>"$folder/noise"
    sleep 0.$((RANDOM % 10))
  done
}

# resident: KiB of all ranks.
resident() {
  local pid
  for pid in $(pgrep -P "$ranks_pid"); do grep VmRSS "/proc/$pid/status" 2>/dev/null; done | awk '{ s += $2 } END { print s }'
}

out=$folder/soak
start_ranks 4 "${run[@]}" out="$out"
until_logged 1
noise &
noise_pid=$!
trap 'kill "$noise_pid" 2>/dev/null || true; rm -rf "$folder"' EXIT
end=$((SECONDS + seconds))
while ((SECONDS < end)); do
  stopped=$(pid_of_rank $((RANDOM % 4)))
  kill -STOP "$stopped"
  sleep 0.$((RANDOM % 3))
  kill -CONT "$stopped"
  sleep 0.$((RANDOM % 10))
  echo "$((SECONDS - end + seconds)) $(resident)" >>"$folder/memory"
done
kill -USR1 "$ranks_pid"
ends_with 0
kill "$noise_pid"
if grep -q "FAILED" "$folder/noise"; then fail "an exchange of the noise failed: $(tail -n 3 "$folder/noise")"; fi

# After a tenth of the time everything has been allocated that ever will be.
awk -v from=$((seconds / 10)) '$1 >= from { if (!n++) least = most = first = $2; if ($2 < least) least = $2; if ($2 > most) most = $2; last = $2 }
  END { printf "memory of the ranks, KiB: from %d to %d, first %d, last %d: %.2f %%\n", least, most, first, last, 100 * (most - least) / least
        exit most - least > 0.01 * least }' "$folder/memory" || fail "the memory of the ranks is not flat"

soaked=$out count=$(losses "$out" | wc -l)
out=$folder/calm
start_ranks 4 "${run[@]}" out="$out"
until_logged "$count"
kill -USR1 "$ranks_pid"
ends_with 0
cmp <(losses "$soaked") <(losses "$out" | head -n "$count") >&2 || fail "the losses are not those of a calm run"
echo "$count steps in $seconds s, $(grep -c W "$folder/noise") exchanges beside them: the losses are those of a calm run, to the bit"
