# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154  # folder, run and expect_exact are of the test
# For tests that kill a run again and again, sourced behind common.sh. A test defines expect_exact, and sets $pid to the launcher of
# the run whose folder is $run and whose configuration is $folder/run.toml.

limit=120  # seconds after which anything here counts as a hang
kill=0     # kills so far
ended=0    # runs that came to their end before
pid=""
trap 'if [[ -n "$pid" ]]; then kill -9 "$pid" 2>/dev/null || true; fi; pkill -9 -f "$folder/run.toml" || true; rm -rf "$folder"' EXIT

# within COMMAND...: polls until the command succeeds.
within() {
  local end=$((SECONDS + limit))
  until "$@"; do
    ((SECONDS < end)) || fail "hang: kill $kill: no '$*' within $limit s"
    sleep 0.005
  done
}

is_gone() { ! kill -0 "$pid" 2>/dev/null; }
all_gone() { is_gone && ! pgrep -f "$folder/run.toml" >/dev/null; }

# kill_one: SIGKILL to a random rank, or to the launcher. False where the run had come to its end, whose losses must be exact; its
# folder is removed.
kill_one() {
  local victims
  until is_gone; do
    mapfile -t victims < <(pgrep -P "$pid")  # also a child of the launcher that ends of itself
    victims+=("$pid")
    kill -9 "${victims[RANDOM % ${#victims[@]}]}" 2>/dev/null || continue
    kill=$((kill + 1))
    within all_gone
    wait "$pid" 2>/dev/null || true
    return 0
  done
  within all_gone
  wait "$pid" || fail "a run that was not killed"
  expect_exact
  ended=$((ended + 1))
  rm -rf "$run"
  return 1
}
