#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A signal while a run starts, inputs that are no files, and a folder that vanishes under a run: one line and the documented
# code. Usage: faults_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml

# background WORD...: cadre WORD... on two ranks; $pid is the program or its launcher.
background() {
  "${launcher[@]}" "$program" "$@" "${two_ranks[@]}" >"$output" 2>&1 &
  pid=$!
}
ends() {
  code=0
  wait "$pid" || code=$?
}
# starts PID: whether MPI starts there (Open MPI has a process of its own for it then), or the signals are handled, whichever
# comes first.
starts() {
  local handled
  [[ "/proc/$1/exe" -ef "$program" ]] || return 1  # still the shell, which handles signals of its own
  handled=$(sed -n 's/^SigCgt:[[:space:]]*//p' "/proc/$1/status" 2>/dev/null)
  ((0x${handled:-0} & 1 << 14)) || pgrep -P "$1" >/dev/null
}

# A signal during the start is a request to stop like any other.
for signal in USR1 TERM; do
  "$program" train "$run" out="$folder/start-$signal" train.steps=100000 "${two_ranks[@]}" >"$output" 2>&1 &
  pid=$!
  until starts "$pid"; do kill -0 "$pid" 2>/dev/null || fail "it has ended"; done
  kill "-$signal" "$pid"
  ends
  succeeded "SIG$signal during the start"
  says "stopped by a signal after step 1"
  [[ ! -e "$folder/start-$signal/FINISHED" && -e "$folder/start-$signal/checkpoints/latest" ]] || fail "not saved"
done

# Files that are none. Opening a FIFO would wait for ever.
time_limit=60
mkfifo "$folder/fifo"
on_two_ranks train "$folder/fifo"
refused 2 "$folder/fifo" "it is a FIFO"
on_two_ranks train /dev/zero
refused 2 "/dev/zero" "it is a device"
on_two_ranks train "$folder"
refused 2 "$folder" "it is a folder"
on_two_ranks train "$run" "data=$folder/fifo"
refused 2 "$folder/fifo"
on_two_ranks train "$run" "data.tokenizer=$folder/fifo"
refused 2 "$folder/fifo" "it is a FIFO"
on_two_ranks train "$run" "model.config=$folder/fifo"
refused 2 "$folder/fifo" "it is a FIFO"
on_two_ranks train "$run" "checkpoint.resume=$folder/fifo"
refused 2 "$folder/fifo"
on_two_ranks train "$run" "out=$folder/fifo"
refused 2 "$folder/fifo"
on_two_ranks eval "$folder/fifo" --data "$folder/text"
refused 2 "$folder/fifo"
on_two_ranks train "$run" "out=$folder/whole"
succeeded "a run"
for file in config.json cadre.json run.toml model-00001-of-00002.safetensors; do
  checkpoint=$folder/fifo-$file
  cp -r "$folder/whole/checkpoints/step_00000003" "$checkpoint"
  rm "$checkpoint/$file"
  mkfifo "$checkpoint/$file"
  on_two_ranks eval "$checkpoint" --data "$folder/text"
  refused 2 "$checkpoint/$file" "it is a FIFO"
done

# A folder that is removed under a run ends it.
background train "$run" "out=$folder/gone" train.steps=1000000 log.every=1000000 checkpoint.every=100
for ((i = 0; i < 600; ++i)); do
  if [[ -e "$folder/gone/checkpoints/latest" ]]; then break; fi
  sleep 0.1
done
mv "$folder/gone" "$folder/gone-elsewhere"
rm -r "$folder/gone-elsewhere"
ends
refused 3 "the folder $folder/gone was removed or renamed"
[[ ! -e "$folder/gone" ]] || fail "it is there again: $(find "$folder/gone")"
