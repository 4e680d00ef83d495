#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What the Python package reads of runs and scores, against the files themselves and against `cadre score`; stubs; the source
# archive. Usage: python_test.sh CADRE PYTHON
python=$2
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$1"

tests=$(cd "$(dirname "$0")/.." && pwd)
alone train "$folder/run.toml" train.eval_every=2 out="$folder/run"
succeeded "a run"
code=0
CADRE_PROGRAM=$program timeout "$time_limit" "$python" "$(dirname "$0")/files_test.py" "$folder/run" \
  "$tests/golden/v3_mini" >"$output" 2>&1 || code=$?
succeeded "files_test.py"

# A line that is torn ends the table; one inside is an error.
cp -r "$folder/run" "$folder/torn"
printf '{"step": 4, "lo' >>"$folder/torn/metrics.jsonl"
code=0
"$python" -c "import cadre; assert len(cadre.load_metrics('$folder/torn')) == 3" >"$output" 2>&1 || code=$?
succeeded "a torn last line"
printf '\n{"step": 5}\n' >>"$folder/torn/metrics.jsonl"
if "$python" -c "import cadre; cadre.load_metrics('$folder/torn')" >"$output" 2>&1; then fail "a damaged line passes"; fi
says "metrics.jsonl:" "not JSON"
