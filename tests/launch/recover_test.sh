#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Ranks that stop or die under mpirun: who is late is named, the job ends, or those that are left go on without them.
# Usage: recover_test.sh CADRE MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"
# shellcheck source=tests/launch/ranks.sh
source "$(dirname "$0")/ranks.sh"
mpirun=("${@:2}") out=""

long=("$folder/run.toml" train.steps=100000 checkpoint.every=1000000 log.every=20 exchange.strategy=flat)

# A rank that is stopped: the others name it, and the job ends with the code of a wait that took too long.
start_ranks 3 "${long[@]}" exchange.deadline_s=2 out="$folder/stopped"
until_logged 3
stopped=$(pid_of_rank 1)
kill -STOP "$stopped"
ends_with 4
says "rank 1 on $(hostname) (pid $stopped) does not answer" "step " "waited 2 s in "
(($(grep -c 'cadre: error:' "$output") == 1)) || fail "not one line"

# A rank that dies ends the job; where mpirun is faster than the others, with the code of the signal.
start_ranks 3 "${long[@]}" out="$folder/died"
until_logged 3
ranks=$(pgrep -P "$ranks_pid")
kill -KILL "$(pid_of_rank 1)"
ends_with 6 137
until_gone "$ranks"

if ! "${mpirun[0]}" --version | grep -q 'Open MPI'; then
  echo "the rest needs Open MPI's --enable-recovery"
  exit 0
fi
# Nothing is promised where the launcher would end the job.
start_ranks 2 "${long[@]}" recover=survivors out="$folder/refused"
ends_with 3
says "recover = survivors" "--enable-recovery"

whole_run=("$folder/run.toml" train.schedule=constant train.steps=60 checkpoint.every=10 checkpoint.keep=100 exchange.strategy=flat)
start_ranks 4 "${whole_run[@]}" out="$folder/whole"
ends_with 0

mpirun+=(--enable-recovery)
# survives NAME RANK...: all those ranks are killed, one after the other; the run goes on from the last checkpoint on those
# that are left, to the bits of a run that is resumed from there on as many.
survives() {
  local name=$1 rank
  shift
  start_ranks 4 "${whole_run[@]}" train.steps=4000 recover=survivors out="$folder/$name"
  until_saved
  for rank in "$@"; do kill -KILL "$(pid_of_rank "$rank")"; done
  until_said "RECOVERY "
  until_said "resumed after step"
  local left=$((4 - $#)) from
  from=$(sed -n 's/.*resumed after step \([0-9]*\).*/\1/p' "$output" | tail -n 1)
  until_logged $((from + 20))
  kill -USR1 "$ranks_pid"
  ends_with 0
  says "$left ranks continue" "stopped by a signal"
  local last
  last=$(losses "$out" | wc -l)
  ((last >= from + 20)) || fail "the run did not go on"
  cp -r "$out/checkpoints/step_$(printf %08d "$from")" "$folder/from"
  local recovered=$out
  start_ranks "$left" "${whole_run[@]}" train.steps=4000 checkpoint.resume="$folder/from" out="$folder/resumed"
  until_logged $((from + 20)) 0
  kill -USR1 "$ranks_pid"
  ends_with 0
  cmp <(losses "$recovered" | sed -n "$((from + 1)),$((from + 20))p") <(losses "$out" | head -n 20) >&2 ||
    fail "$name: the losses are not those of a run resumed from step $from on $left ranks"
  paste <(losses "$recovered" | head -n 30) <(losses "$folder/whole" | head -n 30) |
    awk 'NF != 2 || ($1 - $2)^2 > (1e-5 * $1)^2 { exit 1 }' || fail "$name: the losses are not those of a calm run"
  rm -rf "$folder/from" "$folder/resumed"
}
survives one 2
survives two 0 3

# Where a rank cannot take part in that, as it is stopped, the job ends nevertheless, and it with it.
start_ranks 3 "${long[@]}" recover=survivors exchange.deadline_s=2 out="$folder/watched"
until_logged 3
ranks=$(pgrep -P "$ranks_pid")
stopped=$(pid_of_rank 2)
died=$(pid_of_rank 1)
kill -STOP "$stopped"
kill -KILL "$died"
ends_with 1 75
says "has not come back" "(pid $died) died"
until_gone "$ranks"

# With copies in memory nothing is read, and no step is lost that a copy has.
start_ranks 4 "${whole_run[@]}" train.steps=4000 checkpoint.every=1000 recover=survivors checkpoint.partner_copies=1 \
  checkpoint.partner_every=3 out="$folder/copies"
until_logged 20
kill -KILL "$(pid_of_rank 1)"
until_said "resumed after step [0-9]*, from copies in memory"
from=$(sed -n 's/.*resumed after step \([0-9]*\),.*/\1/p' "$output")
((from >= 15 && from % 3 == 0)) || fail "copies of step $from"
until_logged $((from + 20))
kill -USR1 "$ranks_pid"
ends_with 0
paste <(losses "$out" | head -n 30) <(losses "$folder/whole" | head -n 30) |
  awk 'NF != 2 || ($1 - $2)^2 > (1e-5 * $1)^2 { exit 1 }' || fail "the losses after copies in memory are not those of a calm run"
