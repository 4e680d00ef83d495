#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs on 4 ranks that lose one or two of them at random moments, with every exchange and every way to save: each goes on in its
# job, to its end and to the losses of a calm run. Usage: recover.sh RECOVERIES SEED CADRE MPIRUN [FLAG...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/../launch/common.sh" "$3"
# shellcheck source=tests/launch/ranks.sh
source "$(dirname "$0")/../launch/ranks.sh"
wanted=$1
RANDOM=$2
mpirun=("${@:4}") out=""
steps=100
run=("$folder/run.toml" "train.steps=$steps" train.schedule=constant checkpoint.every=7)

pause() { sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"; }

# kill_rank RANK: unless it is gone already.
kill_rank() {
  local pid
  pid=$(pid_of_rank "$1" 2>/dev/null) || return 1
  kill -KILL "$pid" 2>/dev/null
}

# run_and_kill KIND key=value...: one run; `single`, `double` at once, or `during` the recovery from the first.
run_and_kill() {
  local first=$((RANDOM % 4)) second
  second=$(((first + 1 + RANDOM % 3) % 4))
  out=$folder/run
  rm -rf "$out"
  start_ranks 4 "${run[@]}" recover=survivors "${@:2}" out="$out"
  until_logged 1
  pause $((RANDOM % 3000))
  kill_rank "$first" || true
  case "$1" in
    double) kill_rank "$second" || true ;;
    during)
      pause $((RANDOM % 1200))
      kill_rank "$second" || true
      ;;
  esac
  ends_with 0
  [[ -e $out/FINISHED ]] || fail "no FINISHED"
  paste <(losses "$folder/calm") <(losses "$out") | awk -v steps="$steps" '
    NF != 2 || ($1 - $2)^2 > (1e-5 * $1)^2 { bad = 1 }
    END { exit bad || NR != steps }' || fail "the losses are not those of the calm run"
}

mpirun+=(--enable-recovery)
out=$folder/calm
start_ranks 4 "${run[@]}" exchange.strategy=flat out="$out"
ends_with 0

kinds=(single single double during)
strategies=(flat shared all_gather auto)
saves=(checkpoint.async=false checkpoint.async=true checkpoint.partner_copies=1)
recoveries=0 runs=0
declare -A count=()
while ((recoveries < wanted)); do
  kind=${kinds[RANDOM % ${#kinds[@]}]}
  run_and_kill "$kind" "exchange.strategy=${strategies[RANDOM % 4]}" "${saves[RANDOM % 3]}"
  found=$(grep -c '^RECOVERY ' "$output" || true)
  ((found == 0)) || count[$kind]=$((${count[$kind]:-0} + 1))
  recoveries=$((recoveries + found)) runs=$((runs + 1))
  grep '^recovered in' "$output" >>"$folder/times" || true
  ((runs % 10 != 0)) || echo "$runs runs, $recoveries recoveries"
done
echo "$runs runs with deaths (${count[single]:-0} single, ${count[double]:-0} double, ${count[during]:-0} with a second one soon after), \
$recoveries recoveries: every run ended, with the losses of a calm run"
sort -k3n "$folder/times" | awk '{ t[NR] = $3 } END { print "seconds from noticing a death to going on: median " t[int((NR + 1) / 2)] ", longest " t[NR] }'
