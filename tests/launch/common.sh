# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the tests of the program share. Sourced with the program and, for a run over MPI, the launcher and its flags:
#   source common.sh CADRE [mpirun -n 2 ...]
# Without a launcher two thread ranks take the place of two processes.
set -euo pipefail

support=$(cd "$(dirname "${BASH_SOURCE[0]}")/../support" && pwd)
program=$1
launcher=("${@:2}")
two_ranks=()
if ((${#launcher[@]} == 0)); then two_ranks=(--ranks 2); fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
output=$folder/output
time_limit=120

# A model so small that a step takes milliseconds; combine = slot_order makes its numbers the same on any ranks.
cat >"$folder/run.toml" <<END
out = "$folder/run"
[model]
hidden_size = 16
num_hidden_layers = 2
num_attention_heads = 2
max_position_embeddings = 64
intermediate_size = 32
first_k_dense_replace = 1
n_routed_experts = 4
num_experts_per_tok = 2
n_shared_experts = 1
moe_intermediate_size = 8
[data]
path = "$folder/text"
sequence_length = 16
[train]
steps = 3
batch = 4
eval_batches = 2
learning_rate = 3e-3
[exchange]
combine = "slot_order"
deadline_s = 30
END
for i in {1..300}; do echo "line $i tells of a number, and of the next one, $((i + 1))"; done >"$folder/text"

fail() {
  echo "FAILED: $1" >&2
  if [[ -e "$output" ]]; then sed 's/^/    /' "$output" >&2; fi
  exit 1
}

# on_two_ranks WORD...: cadre WORD... on two ranks; all it prints goes to $output, its exit code to $code.
on_two_ranks() {
  local tries
  for tries in 1 2 3; do
    code=0
    timeout "$time_limit" "${launcher[@]}" "$program" "$@" "${two_ranks[@]}" >"$output" 2>&1 || code=$?
    # Open MPI's own mpirun crashes now and then once the job has been aborted.
    ((code == 139)) && grep -q PMIx_server_finalize "$output" || return 0
    echo "mpirun crashed, try $tries" >&2
  done
}

# alone WORD...: cadre WORD... as one process.
alone() {
  code=0
  timeout "$time_limit" "$program" "$@" >"$output" 2>&1 || code=$?
}

# says TEXT...: $output holds each of them.
says() {
  local text
  for text in "$@"; do grep -qF -- "$text" "$output" || fail "'$text' is not in the output"; done
}

succeeded() { ((code == 0)) || fail "exit code $code: $1"; }

# refused CODE TEXT...: the exit code, and exactly one error line, which holds a hint and each TEXT.
refused() {
  ((code == $1)) || fail "exit code $code, expected $1"
  (($(grep -c 'cadre: error:' "$output") == 1)) || fail "not exactly one line with 'cadre: error:'"
  grep 'cadre: error:' "$output" >"$output.line"
  local text
  for text in "(hint: " "${@:2}"; do grep -qF -- "$text" "$output.line" || fail "'$text' is not in the error line"; done
}

# tearing_program FILE: makes FILE a program that is $program, but for one message of rank 1, which arrives a byte short. Only
# the first process that finds no file $TORN tears one. False where there is no compiler for MPI.
tearing_program() {
  command -v mpicc >/dev/null || return 1
  mpicc -shared -fPIC -o "$1.so" "$support/torn_message.c"
  local sanitizer  # of a sanitized program: must come first
  sanitizer=$(ldd "$program" | awk '$1 ~ /^lib[at]san/ { print $3 }')
  printf '#!/bin/sh\nLD_PRELOAD="%s" exec %s "$@"\n' "$sanitizer $1.so" "$program" >"$1"
  chmod +x "$1"
}
