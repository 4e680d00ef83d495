#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Standard output that cannot be written: a run goes on to its end; a command whose result is its output fails with one line.
# Usage: output_test.sh CADRE
set -euo pipefail

# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

# is_finished WHAT: exit code 0, all steps logged, FINISHED.
is_finished() {
  [[ "$code" == 0 ]] || fail "$1: exit code $code"
  [[ -e "$folder/run/FINISHED" ]] || fail "$1: no FINISHED"
  [[ "$(grep -c '"loss"' "$folder/run/metrics.jsonl")" == 60 ]] || fail "$1: steps are missing in metrics.jsonl"
}

code=0
"$program" train "$folder/run.toml" steps=60 2>"$output" | head -n 1 >/dev/null || code=${PIPESTATUS[0]}
is_finished "the reader of a pipe ended"
says "warning: standard output cannot be written: Broken pipe"
rm -r "$folder/run"

code=0
"$program" train "$folder/run.toml" steps=60 trace.first_step=58 trace.steps=2 >/dev/full 2>"$output" || code=$?
is_finished "standard output on a full disk"
says "warning: standard output cannot be written: No space left on device"
[[ "$(wc -l <"$output")" == 1 ]] || fail "more than one line on stderr"

for words in "generate $folder/run --prompt line --max-new 20" "eval $folder/run" "inspect $folder/run" \
  "report $folder/run" "train $folder/run.toml --print-config" "--help" "train --help" "plan dispatch"; do
  code=0
  # shellcheck disable=SC2086  # several words
  "$program" $words >/dev/full 2>"$output" || code=$?
  refused 3 "No space left on device"
done
code=0
{ "$program" generate "$folder/run" --prompt line --max-new 30 || echo "code $?" >&2; } 2>"$output" | true
says "cadre: error: standard output cannot be written: Broken pipe" "code 3"
