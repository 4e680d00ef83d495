#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The scripts of launch/slurm, installed in a prefix, on a real cluster of two nodes: a run from start to finish, one that is
# signalled, put back and goes on to the same losses, one that is cancelled, one that loses a rank, a sweep, a text.
# Usage: support/slurm.sh 2 -- launch/slurm_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"

export MPIRUN_OPTIONS="--bind-to none --oversubscribe"
unset CADRE
cmake --install "$(dirname "$program")" --prefix "$folder/prefix" >/dev/null
scripts=$folder/prefix/share/cadre/slurm
mkdir "$folder/jobs"
cd "$folder/jobs"

# fail TEXT: with what Slurm knows of it, and what the ranks that are left do.
fail() {
  echo "FAILED: $1" >&2
  for rank in $(pgrep -x cadre); do grep -H -E '^(State|Threads)' "/proc/$rank/status" >&2; cat "/proc/$rank/wchan" >&2; done || true
  scontrol show job "${job:-}" >&2 || true
  tail -n 15 "$TMPDIR"/*.log >&2
  tail -n 20 "$output" | sed 's/^/    /' >&2 || true
  echo "FAILED: $1; job ${job:-} is $(state)" >&2
  exit 1
}

set -o errtrace
trap 'fail "$BASH_COMMAND, in line $LINENO"' ERR

patience=600  # seconds that anything may take; a job that hangs is the failure looked for

# submit SCRIPT WORD...: sets $job; its output goes to $output.
submit() {
  output=$folder/jobs/output-$((++submitted))
  job=$(sbatch --parsable --nodes=2 --output="$output" "${geometry[@]}" "${submit_options[@]}" "$scripts/$1" "${@:2}")
}
submitted=0
submit_options=()
geometry=(--ntasks-per-node=1 --cpus-per-task=1)  # one rank a node, one cpu a rank

state() { { scontrol --oneliner show job "$job" 2>/dev/null | grep -o "JobState=[A-Z_]*" | cut -d= -f2 | sort -u | xargs; } || true; }

# until_true WHAT COMMAND...: polls.
until_true() {
  local end=$((SECONDS + patience))
  while ((SECONDS < end)); do
    if "${@:2}"; then return; fi
    sleep 0.1
  done
  fail "waited in vain until $1; the job is $(state)"
}
in_state() { [[ "$(state)" == "$1" ]]; }
# Of an array: all its tasks.
ended() { [[ "$(state)" =~ ^((COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)( |$))+$ ]]; }
steps_reach() { [[ -e $1/metrics.jsonl ]] && (($(wc -l <"$1/metrics.jsonl") >= $2)); }
ends_as() {
  until_true "the job ends" ended
  in_state "$1" || fail "the job is $(state), not $1"
}
nothing_runs() { ! pgrep -x cadre >/dev/null; }

# losses FOLDER: what must be equal to the bit between runs.
losses() { grep -o '"step":[0-9]*,"\(loss\|validation_loss\)":[0-9.e+-]*' "$1/metrics.jsonl"; }
same_losses() { diff <(losses "$1") <(losses "$2") >&2 || fail "the losses of $1 and $2 differ"; }

# Long enough that a signal, which takes Slurm a second, comes in the middle of it.
run=(train.sbatch "$folder/run.toml" train.steps=1000 train.eval_every=500 checkpoint.every=200 exchange.strategy=flat)

# Who is where. One process of a job of two is a trouble; two that know each other are not.
output=$folder/jobs/doctor
srun --nodes=2 --ntasks=2 --mpi=pmix "$program" doctor >"$output" || fail "doctor failed"
says "launcher  srun, ranks 2" "node0" "node1" "link      rank 0 on node0 - rank 1 on node1: latency"
if grep -q "one process" "$output"; then fail "doctor does not know srun"; fi

# From start to finish.
export OUT=$folder/whole
submit "${run[@]}"
ends_as COMPLETED
says "ranks 2 | hosts 2" "node0" "node1"
[[ -e $OUT/FINISHED ]] || fail "no FINISHED"
(($(losses "$OUT" | wc -l) == 1002)) || fail "not 1000 losses and 2 evaluations"
submit "${run[@]}"
ends_as COMPLETED
says "$OUT is finished"
submit "${run[@]}" seed=99
ends_as FAILED
says "holds a run of another configuration"

# Ranks and threads of a node from its cpus; the folder from the run file, then from the job. No argument: the usage.
unset OUT
geometry=()
short=(train.sbatch "$folder/run.toml" train.steps=2)
submit "${short[@]}" "out=named"
ends_as COMPLETED
says "ranks 2 | hosts 2" "threads a rank 2"
[[ -e $folder/jobs/named/FINISHED ]] || fail "the folder that the command line names is not the one"
sed -i 's/^out = .*//' "$folder/run.toml"
submit "${short[@]}"
ends_as COMPLETED
[[ -e $folder/jobs/runs/cadre-$job/FINISHED ]] || fail "a job without a folder does not take its number"
for script in train bench generate; do
  submit $script.sbatch
  ends_as FAILED
  says "usage: sbatch"
done
geometry=(--ntasks-per-node=1 --cpus-per-task=1)

# The wrong plug-in of Slurm: our own line.
output=$folder/jobs/wrong
code=0
srun --nodes=2 --ntasks=2 --mpi=none "$program" train "$folder/run.toml" >"$output" 2>&1 || code=$?
says "cadre: error: the launcher started 2 processes" "srun --mpi=pmix"
((code != 0)) || fail "srun --mpi=none: exit code 0"

# Warned as before a time limit, put back by itself, resumed: with both launchers.
for LAUNCHER in srun mpirun; do
  export LAUNCHER OUT=$folder/warned-$LAUNCHER
  submit "${run[@]}"
  until_true "some steps are done" steps_reach "$OUT" 5
  scancel --batch --signal=USR1 "$job"
  until_true "the job is back in the queue" in_state PENDING
  says "stopped by a signal after step"
  [[ ! -e $OUT/FINISHED ]] || fail "FINISHED after a signal"
  # Slurm has a job that is put back wait two minutes. Its credentials tell seconds apart: on a busy machine two seconds
  # were not enough.
  sleep 5
  scontrol update jobid="$job" StartTime=now
  ends_as COMPLETED
  says "restart 1" "resumed after step"
  [[ -e $OUT/FINISHED ]] || fail "no FINISHED"
  same_losses "$folder/whole" "$OUT"
done

# As often as allowed and no more.
export LAUNCHER=srun OUT=$folder/bounded MAX_RESTARTS=0
submit "${run[@]}"
until_true "some steps are done" steps_reach "$OUT" 5
scancel --batch --signal=USR1 "$job"
ends_as FAILED
says "not finished after 0 restarts"
unset MAX_RESTARTS

# Cancelled: ranks save first, and nothing is left or put back.
for LAUNCHER in srun mpirun; do
  export LAUNCHER OUT=$folder/cancelled-$LAUNCHER
  submit "${run[@]}" checkpoint.every=0
  until_true "some steps are done" steps_reach "$OUT" 5
  scancel "$job"
  ends_as CANCELLED
  until_true "all ranks are gone" nothing_runs
  [[ ! -e $OUT/FINISHED ]] || fail "FINISHED when cancelled"
  # mpirun may not leave them the time.
  if [[ $LAUNCHER == mpirun ]]; then continue; fi
  says "stopped by a signal after step"
  [[ -e $OUT/checkpoints/latest ]] || fail "cancelled without a checkpoint"
done

# A rank that dies alone on its node takes the job with it; submitted again, it goes on.
for LAUNCHER in srun mpirun; do
  export LAUNCHER OUT=$folder/killed-$LAUNCHER
  submit "${run[@]}"
  until_true "a checkpoint is there" test -e "$OUT/checkpoints/latest"
  victim=$(pgrep -x cadre | sort -n | tail -n 1)
  kill -KILL "$victim"
  ends_as FAILED
  until_true "all ranks are gone" nothing_runs
  [[ ! -e $OUT/FINISHED ]] || fail "FINISHED without a rank"
  submit "${run[@]}"
  ends_as COMPLETED
  says "resumed after step"
  same_losses "$folder/whole" "$OUT"
done

# A message that arrives torn is put back in the queue, though srun has a code of its own for it.
if tearing_program "$folder/tears"; then
  for LAUNCHER in srun mpirun; do
    export LAUNCHER OUT=$folder/torn-$LAUNCHER CADRE=$folder/tears TORN=$folder/torn-by-$LAUNCHER
    if [[ $LAUNCHER == mpirun ]]; then MPIRUN_OPTIONS+=" -x TORN"; fi
    submit "${run[@]}"
    until_true "a message is torn" test -e "$TORN"  # it waits in the queue before it starts, too
    until_true "the job is back in the queue" in_state PENDING
    says "expected"
    sleep 5
    scontrol update jobid="$job" StartTime=now
    ends_as COMPLETED
    [[ -e $OUT/FINISHED ]] || fail "no FINISHED"
    [[ -z "$(find "$OUT" -name '*.exit')" ]] || fail "a code is left"
  done
  unset CADRE
fi

# A sweep, one line a task; a line too many is an error of its own.
cat >"$folder/sweep" <<END
exchange --strategy flat --workload W0 --tokens 32 --hidden 64 --experts 4 --top-k 2 --iterations 2 --warmup 0
overlap --tokens 32 --hidden 64 --experts 4 --top-k 2 --iterations 2 --warmup 1
END
export LAUNCHER=srun OUT=$folder/sweep-results
submit_options=(--array=1-2)
submit bench.sbatch "$folder/sweep"
ends_as COMPLETED
submit_options=()
grep -q '"strategy"' "$OUT/1.json" || fail "no measurement of line 1"
grep -q 'hidden_percent_osu' "$OUT/2.json" || fail "no measurement of line 2"

# Each line of the sweep that is shipped, with small sizes.
declare -A sizes=([exchange]="--tokens 32 --hidden 256 --experts 4 --top-k 2 --iterations 1 --warmup 0"
  [overlap]="--tokens 32 --hidden 64 --iterations 1 --warmup 1"
  [layer]="--tokens 32 --hidden 32 --ffn 32 --experts 4 --top-k 2 --iterations 1 --warmup 1")
while read -r kind rest; do echo "$kind $rest ${sizes[$kind]}"; done <"$scripts/sweep.txt" >"$folder/shipped"
export OUT=$folder/shipped-results
submit_options=(--array=1-"$(wc -l <"$folder/shipped")")
submit bench.sbatch "$folder/shipped"
ends_as COMPLETED
submit_options=()
for ((line = 1; line <= $(wc -l <"$folder/shipped"); ++line)); do
  [[ -s $OUT/$line.json ]] || fail "no measurement of line $line of sweep.txt"
done

submit generate.sbatch "$folder/whole" --prompt "line " --max-new 20
ends_as COMPLETED
[[ "$(head -c 5 "$output")" == "line " ]] || fail "no text"
