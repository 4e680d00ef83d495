#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# cadre plan: what it prints and writes, and what it refuses. Usage: plan_test.sh CADRE
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

# A command with parts.
alone plan --help
succeeded "plan --help"
says "Usage: cadre plan COMMAND" "schedule"
alone plan
refused 2 "cadre plan COMMAND" "no command"
alone plan shedule
refused 2 "plan shedule" "schedule" "cadre plan --help"

# plan schedule
alone plan schedule --help
succeeded "plan schedule --help"
says "Usage: cadre plan schedule [options]" "--micro-batches" "dualpipev" "(R-1)(F+B-2W)"
alone plan schedule --schedule dualpipe --ranks 8 --micro-batches 20 --cost FB=2.4 --json "$folder/s.json" --svg "$folder/s.svg"
succeeded "plan schedule"
says "rank0 Fa0 Fa1 Fa2 Fa3 Fa4 Fa5 Fa6 Fb0 bb0 W" "makespan       57.6" "by rank 3 3.6 4.2" "by formula     4.2" "at most 9"
grep -q '"schema":"cadre.schedule/1"' "$folder/s.json" || fail "no schema in s.json"
head -c 4 "$folder/s.svg" | grep -q '<svg' || fail "s.svg is no chart"
alone plan schedule --ranks 5
succeeded "a fallback"
says "note: dualpipe needs an even number of ranks" "zb1p"
alone plan schedule --schedule dualpip
refused 2 "--schedule" "dualpipe"
alone plan schedule --cost G=1
refused 2 "--cost G=1" "F, B, Bi, W, FB"
alone plan schedule --cost F=0
refused 2 "--cost F = 0" "number > 0"
alone plan schedule --ranks 0
refused 2 "--ranks = 0"
alone plan schedule --svg "$folder/text/s.svg"
refused 3 "$folder/text/s.svg"
