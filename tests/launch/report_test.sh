#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cadre report: what it prints and writes of a trace, and what it refuses. Usage: report_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

# trace_of DIR RANK COMPUTED_US: a rank that computes so long, then waits for an exchange until 1,000 us.
trace_of() {
  mkdir -p "$1/trace"
  cat >"$1/trace/rank0000$2.json" <<END
{"displayTimeUnit":"ns","baseTimeNanoseconds":0,
"otherData":{"schema":"cadre.trace","version":1,"rank":$2,"host":"node$2","clock_offset_begin_ns":0,
  "clock_offset_end_ns":0,"clock_error_ns":500,"lost_events":0,"events":4,
  "run":{"cadre_version":"0","mpi":"none","ranks":2,"hosts":2,"pipeline":1,"data":2,"expert":2,"schedule":"1f1b",
    "micro_batches":1,"exchange":"flat","threads":1,"seed":1,"config_hash":"0"}},
"traceEvents":[
{"ph":"X","ts":0,"dur":1000,"name":"step 3","cat":"step","pid":$2,"tid":0,"args":{"i":0,"phase":"step","step":3}},
{"ph":"X","ts":0,"dur":$3,"name":"norm","cat":"compute","pid":$2,"tid":1,"args":{"i":1,"phase":"norm","step":3,"layer":1}},
{"ph":"b","ts":$3,"name":"dispatch","cat":"flight","id":"0x$2","pid":$2,"args":{"i":2,"phase":"dispatch","step":3,"layer":1,"bytes":4096}},
{"ph":"X","ts":$3,"dur":$((1000 - $3)),"name":"wait","cat":"wait","pid":$2,"tid":2,"args":{"i":3,"phase":"dispatch","step":3,"layer":1}},
{"ph":"e","ts":999,"name":"dispatch","cat":"flight","id":"0x$2","pid":$2,"args":{"i":2}}
]}
END
}
run=$folder/traced
trace_of "$run" 0 600
trace_of "$run" 1 800
echo '{"step":3,"expert_cv":0.5,"device_cv":0.1,"expert_max_vio":1.5,"drop_rate":0,"layers":[{"layer":1,"counts":[3,1]}]}' >"$run/metrics.jsonl"

alone report --help
succeeded "report --help"
says "Usage: cadre report RUN_DIR" "--steps" "cadre report diff"
alone report "$run" --trace "$folder/all.json" --hta "$folder/hta"
succeeded "report"
head -n 1 "$output" | grep -qx "step 1.000 ms | speed-up over serial about 1.00 | exposed 0.299 ms (29.9 % of step; skew 0.100, transfer 0.199)" ||
  fail "the first line is another"
says "whole step: compute 0.700 ms | communication 0.299 | hidden 0.000 (0.0 %) | exposed 0.299 | control 0.000 | idle 0.001" \
  "1 @ node1" "0.200" "1.50" "NOTE: 29.9 % of the step is exposed communication"
grep -q '"name": "traced"' "$run/report.json" || fail "no name of the run in report.json"
grep -q '<ul id="notes"' "$run/report.html" || fail "no notes in report.html"
grep -q '"schema": "cadre.report"' "$run/report.json" || fail "no schema in report.json"
grep -q '"max_vio": 1.5' "$run/report.json" || fail "no balance in report.json"
grep -q '"bp":"e"' "$folder/all.json" || fail "no arrows in all.json"
grep -q '^"rank": 1,$' "$folder/hta/rank00001.json" || fail "no rank in the trace for HTA"
alone report "$run" --steps 3:3 --json "$folder/a.json"
succeeded "report --steps"
cmp -s "$folder/a.json" "$run/report.json" || fail "--json is not the same report"

# Two runs, one of them by its report.
trace_of "$folder/slow" 0 700
trace_of "$folder/slow" 1 900
alone report diff --help
succeeded "report diff --help"
says "Usage: cadre report diff RUN_A RUN_B"
alone report diff "$folder/a.json" "$folder/slow" --json "$folder/diff.json"
succeeded "report diff"
says "compute" "0.700" "0.800" "+14.3 %"
grep -q '"schema": "cadre.report.diff"' "$folder/diff.json" || fail "no schema in diff.json"

alone report
refused 2 "cadre report: RUN_DIR is missing"
alone report diff "$run"
refused 2 "cadre report diff: RUN_B is missing"
alone report "$folder/nowhere"
refused 2 "no trace of rank 0" "nowhere/trace/rank00000.json"
alone report "$run" --steps 4:9
refused 2 "none of the chosen steps" "3 to 3"
alone report "$run" --steps 4:x
refused 2 "--steps 4:x" "x is not a whole number"
alone report "$run" --hta "$folder/hta.json"
refused 2 "2 ranks need a folder, not a file"
alone report diff "$run" "$run/metrics.jsonl"
refused 2 "metrics.jsonl is no report"
head -c 700 "$run/trace/rank00001.json" >"$folder/torn"
mv "$folder/torn" "$run/trace/rank00001.json"
alone report "$run"
refused 2 "rank00001.json is not JSON"
