#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/device without a device: every line says so; and with programs that fail or take too long: it goes on, and says what it
# did not reach. Usage: device_test.sh BUILD
set -euo pipefail

build=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
fail() { echo "FAILED: $1" >&2; sed 's/^/    /' "$folder"/output "$folder"/out/log/* >&2; exit 1; }

# run EXPECTED: the packed script, and its exit code.
run() {
  local code=0
  rm -rf "$folder/out"
  CUDA_VISIBLE_DEVICES="" "$folder/pack/device" run "$folder/out" >"$folder/output" 2>&1 || code=$?
  ((code == $1)) || fail "exit code $code instead of $1"
  python3 -m json.tool "$folder/out/device.json" >/dev/null || fail "no JSON"
}
# states STATE: how many lines of each report have it.
states() {
  local written
  written=$(grep -c "\"state\": \"$1\"" "$folder/out/device.json" || true)
  [[ "$(grep -cE "^.{35}$1 " "$folder/out/device.txt" || true)" == "$written" ]] || fail "the table is not the JSON: $1"
  echo "$written"
}

"$root/tests/device" gather "$build" "$folder/pack"
num_lines=$(($(wc -l <"$folder/pack/tests") + 11))
((num_lines > 20)) || fail "only $num_lines lines"
run 77
[[ "$(states "no device")" == "$num_lines" ]] || fail "not every line says that there is no device"

# A device is found, then all programs fail.
for program in "$folder"/pack/bin/*; do
  printf '#!/bin/sh\ncase "$*" in *"tokens 16 "*|*version*) exit 0 ;; esac\necho "error: a stub"\nexit 1\n' >"$program"
done
run 1
(($(states failed) + $(states "no tool") == num_lines)) || fail "not every line failed"
grep -q 'error: a stub' "$folder/out/device.txt" || fail "no reason"

# They take all the time there is.
sed -i 's/^seconds=.*/seconds=2/' "$folder/pack/device"
sed -i 's/^exit 1/sleep 20/' "$folder"/pack/bin/*
run 1
(($(states "no end in [12] s") > 0 && $(states "not reached") > 20)) || fail "time is not kept"
