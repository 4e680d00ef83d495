#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# launch/supervise: a job that loses a rank, a job that loses a host too, one whose message arrives torn, one that cannot
# run, one that is asked to stop; names of folders and hosts.
# Usage: supervise_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"

supervise=$(dirname "$0")/../../launch/supervise
export CADRE=$program
# Long enough that a kill, which takes some tenths of a second, comes in the middle of it.
run=("$folder/run.toml" train.steps=600 train.eval_every=0 checkpoint.every=100 exchange.strategy=flat)

# supervised OUT WORD...: in the background; $supervisor is its process. A WORD is an option of supervise, or key=value.
supervised() {
  local word options=() values=()
  out=$1
  for word in "${@:2}"; do
    if [[ "$word" == [a-z]*=* ]]; then values+=("$word"); else options+=("$word"); fi
  done
  "$supervise" "${options[@]}" "${run[@]}" "${values[@]}" "out=$out" >"$output" 2>&1 &
  supervisor=$!
}

# until_saved: waits until there is something to go on from.
until_saved() {
  local end=$((SECONDS + 300))
  while ((SECONDS < end)); do
    if [[ -e $out/checkpoints/latest ]]; then return; fi
    sleep 0.05
  done
  fail "no checkpoint"
}

kill_a_rank() {
  local launcher_pid
  launcher_pid=$(pgrep -P "$supervisor" -x mpirun)
  kill -KILL "$(pgrep -P "$launcher_pid" | tail -n 1)"
}

ends_with() {
  code=0
  wait "$supervisor" || code=$?
  ((code == $1)) || fail "exit code $code, not $1"
}

losses() { grep -o '"loss":[0-9.e+-]*' "$1/metrics.jsonl" | cut -d: -f2; }

supervised "$folder/whole" --ranks 2
ends_with 0
(($(losses "$out" | wc -l) == 600)) || fail "not 600 losses"

# The lock of the folder names the series, which is the same before and after the restart.
series_of() { sed -n 's/.*"series":"\([^"]*\)".*/\1/p' "$1/RUNNING"; }
supervised "$folder/killed" --ranks 2
until_saved
series=$(series_of "$out")
[[ $series == "supervise $supervisor on "* ]] || fail "the job is of the series '$series'"
grep -qz CADRE_SERIES "/proc/$(pgrep -P "$supervisor" -x mpirun)/cmdline" || fail "mpirun does not export the series"
pid=$(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' "$out/RUNNING")
kill_a_rank
for _ in {1..600}; do
  if [[ -e $out/RUNNING ]] && ! grep -q "\"pid\":$pid," "$out/RUNNING"; then break; fi
  sleep 0.05
done
[[ $(series_of "$out") == "$series" ]] || fail "the restart is of the series '$(series_of "$out")', not '$series'"
ends_with 0
says "restart 1 of 3" "resumed after step"
[[ -e $out/FINISHED ]] || fail "no FINISHED"
cmp <(losses "$folder/whole") <(losses "$out") >&2 || fail "the losses differ"

# A message that arrives torn is no error of input: it need not happen again.
if tearing_program "$folder/tears"; then
  CADRE=$folder/tears TORN=$folder/torn supervised "$folder/torn-run" --ranks 2 train.steps=200 checkpoint.every=20
  ends_with 0
  [[ -e $folder/torn ]] || fail "no message was torn"
  says "exit code 7: continuing from the last checkpoint, restart 1 of 3"
  [[ -e $out/FINISHED ]] || fail "no FINISHED"
fi

# The second of two hosts is gone with its rank. Both are this machine, under two names.
cat >"$folder/hosts" <<END
localhost
$(hostname)
END
cat >"$folder/check" <<END
#!/bin/sh
[ ! -e "$folder/gone" ] || [ "\$1" = localhost ]
END
chmod +x "$folder/check"
export CADRE_HOST_CHECK=$folder/check
supervised "$folder/fewer" --hostfile "$folder/hosts"
until_saved
touch "$folder/gone"
kill_a_rank
ends_with 0
says "starting on 2 ranks" "$(hostname) does not answer: not used" "starting on 1 ranks" "resumed after step"
# Sums over ranks in another order: what is promised of the number of ranks, as long as differences have not grown.
from=$(sed -n 's/.*resumed after step \([0-9]*\).*/\1/p' "$output")
paste <(losses "$folder/whole") <(losses "$out") |
  awk -v last=$((from + 80)) 'NF != 2 || NR <= last && ($1 - $2)^2 > (1e-5 * $1)^2 { bad = 1 } END { exit bad || NR < last }' || fail "the losses depend on the number of ranks"
supervised "$folder/none" --hostfile "$folder/hosts" --multiple-of 2 --restarts 0
ends_with 3
says "have fewer than 2 slots"

# A rank less, in the same job; then all of them, and the job is started again.
supervised "$folder/survived" --ranks 3 --recover
until_saved
kill_a_rank
ends_with 0
says "RECOVERY " "2 ranks continue"
if grep -q "restart" "$output"; then fail "started again although two ranks could go on"; fi
[[ -e $out/FINISHED ]] || fail "no FINISHED"
supervised "$folder/all" --ranks 2 --recover
until_saved
launcher_pid=$(pgrep -P "$supervisor" -x mpirun)
# shellcheck disable=SC2046  # one word a process
kill -KILL $(pgrep -P "$launcher_pid")
ends_with 0
says "restart 1 of 3" "resumed after step"
[[ -e $out/FINISHED ]] || fail "no FINISHED"

# Where the run ends does not depend on what its folder is called, nor on a grid that one process could not make.
supervised "$folder/odd \\ \"name\" \$(x)" --ranks 2 --recover train.steps=3
ends_with 0
if grep -q "restart" "$output"; then fail "started again although the run is finished"; fi
[[ -e $out/FINISHED ]] || fail "no FINISHED"
supervised "$folder/grid" --ranks 2 --recover train.steps=3 parallel.pipeline=2 train.micro_batches=2
ends_with 0
[[ -e $out/FINISHED ]] || fail "no FINISHED of a grid"

# Names that ssh or mpirun would take for something else than a host.
for line in "-oProxyCommand=touch\${IFS}$folder/pwned slots=1" "node -x" "a;b" "u@-h"; do
  printf 'localhost\n%s' "$line" >"$folder/odd-hosts"
  supervised "$folder/odd-hosts-run" --restarts 0 --hostfile "$folder/odd-hosts"
  ends_with 2
  says "odd-hosts:2: " "allowed: NAME slots=N"
  if "$(dirname "$supervise")/mpirun/two-hosts.sh" "$folder/odd-hosts" "${run[@]}" >"$output" 2>&1; then fail "two-hosts.sh takes '$line'"; fi
  says "odd-hosts:2: "
done
[[ ! -e "$folder/pwned" ]] || fail "a line of a hostfile ran a command"
mkfifo "$folder/fifo"
supervised "$folder/odd-hosts-run" --restarts 0 --hostfile "$folder/fifo"
ends_with 2

# What would fail again is not started again; what fails always, as often as said.
supervised "$folder/refused" --ranks 2 train.stpes=1
ends_with 2
if grep -q "restart" "$output"; then fail "started again after an error of input"; fi
printf '#!/bin/sh\nexit 7\n' >"$folder/dies"
chmod +x "$folder/dies"
CADRE=$folder/dies supervised "$folder/dead" --ranks 2 --restarts 2
ends_with 7
says "exit code 7 after 2 restarts: giving up"

supervised "$folder/stopped" --ranks 2
until_saved
kill -TERM "$supervisor"
ends_with 0
says "stopped by a signal after step"
[[ ! -e $out/FINISHED ]] || fail "FINISHED after a signal"
