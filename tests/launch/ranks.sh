# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# A training run under mpirun whose ranks are signalled. Sourced after common.sh; the caller sets `mpirun`, a list.
: "${time_limit:?}" "${program:?}" "${output:?}"

# start_ranks N WORD...: cadre train WORD... on N ranks in the background, with out= among the words.
start_ranks() {
  local word
  for word in "$@"; do [[ "$word" != out=* ]] || out=${word#out=}; done
  # shellcheck disable=SC2154  # mpirun is the caller's
  timeout "$time_limit" "${mpirun[@]}" -n "$1" "$program" train "${@:2}" >"$output" 2>&1 &
  timeout_pid=$!
  ranks_pid=""
  until [[ -n "$ranks_pid" ]]; do
    [[ -d "/proc/$timeout_pid" ]] || fail "the launcher ended at once"
    ranks_pid=$(pgrep -P "$timeout_pid" || true)
  done
}

# pid_of_rank RANK: of a rank that is running.
pid_of_rank() {
  local pid
  for pid in $(pgrep -P "$ranks_pid"); do
    if tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$1"; then echo "$pid"; return; fi
  done
  fail "rank $1 is not running"
}

# until_gone PIDS: waits for all of them to end; whether somebody has asked for their exit codes does not matter.
until_gone() {
  local pid tries
  for pid in $1; do
    for ((tries = 0; ; ++tries)); do
      grep -q '^State:[[:space:]]*[^ZX]' "/proc/$pid/status" 2>/dev/null || break
      ((tries < 500)) || fail "process $pid is left"
      sleep 0.02
    done
  done
}

# wait_until COMMAND...: fails when the run is over before COMMAND succeeds.
wait_until() {
  until "$@"; do
    [[ -d "/proc/$timeout_pid" ]] || fail "the run is over, and not: $*"
    sleep 0.02
  done
}

losses() { grep -o '"loss":[0-9.e+-]*' "$1/metrics.jsonl" 2>/dev/null | cut -d: -f2; }
has_logged() { (($(losses "$out" | wc -l) >= $1)); }
has_said() { grep -q -- "$1" "$output"; }
until_logged() { wait_until has_logged "$1"; }
until_saved() { wait_until test -e "$out/checkpoints/latest"; }
until_said() { wait_until has_said "$1"; }

# ends_with CODE...: the run ends, with one of these.
ends_with() {
  code=0
  wait "$timeout_pid" || code=$?
  local expected
  for expected in "$@"; do ((code != expected)) || return 0; done
  fail "exit code $code, not $*"
}
