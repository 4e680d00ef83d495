#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# What cannot run is refused with one line that names it, on two ranks, in time. Usage: refusals_test.sh CADRE [LAUNCHER...]
# shellcheck source=tests/launch/common.sh
source "$(dirname "$0")/common.sh" "$@"

run=$folder/run.toml

# Help and version.
alone --help
succeeded help
says "train" "eval" "generate" "inspect"
for command in train eval generate inspect; do
  alone "$command" --help
  succeeded "$command --help"
  says "Usage: cadre $command" "--ranks"
done
alone train --help
says "learning_rate" "moe_intermediate_size" "deadline_s"
alone --version
says "cadre "

# The command line itself.
alone
refused 2 "no command"
alone trian "$run"
refused 2 "trian" "train"
alone train
refused 2 "RUN.toml"
alone eval "$folder" second
refused 2 "second"
alone generate "$folder" --max-new=-3
refused 2 "--max-new = -3" "integer >= 1"
alone generate "$folder" --temprature=1
refused 2 "--temprature" "--temperature"
alone generate "$folder" --max-new
refused 2 "max-new"

# Run files.
on_two_ranks train "$folder/none.toml"
refused 2 "none.toml"
on_two_ranks train "$run" train.stpes=3
refused 2 "train.stpes" "train.steps"
on_two_ranks train "$run" learning_rate=1
refused 2 "learning_rate" "train.learning_rate"
on_two_ranks train "$run" train.batch=0
refused 2 "train.batch = 0" "integer >= 1"
on_two_ranks train "$run" train.learning_rate=fast
refused 2 "train.learning_rate = fast" "number"
on_two_ranks train "$run" model.num_experts_per_tok=5
refused 2 "num_experts_per_tok = 5" "[1, n_routed_experts = 4]"
on_two_ranks train "$run" parallel.expert=3
refused 2 "parallel.expert = 3" "divisor of the 2 ranks"
on_two_ranks train "$run" exchange.balance=host parallel.redundant_experts=2
refused 2 "exchange.balance = host with parallel.redundant_experts" "allowed: none"

on_two_ranks train "$run" compute.device=tpu
refused 2 'compute.device = "tpu"' "cpu | cuda"
CADRE_MAX_CPU_ISA=AVX9 on_two_ranks train "$run"
refused 2 "CADRE_MAX_CPU_ISA = AVX9" "AVX2"
if [[ ! -e /proc/driver/nvidia/gpus ]]; then
  on_two_ranks train "$run" compute.device=cuda
  refused 3 "compute.device = cuda" "compute.device=cpu"
fi

# Data and folders. What lies below a file cannot be written by anybody, not even by root.
on_two_ranks train "$run" "data=$folder/nothing"
refused 2 "$folder/nothing"
: >"$folder/empty"
on_two_ranks train "$run" "data=$folder/empty"
refused 2 "$folder/empty"
on_two_ranks train "$run" "out=$folder/text/run"
refused 2 "out = $folder/text/run"
mkdir "$folder/model"
: >"$folder/model/model.safetensors"
on_two_ranks train "$run" "out=$folder/model"
refused 2 "out = $folder/model" "model.safetensors" "another folder"

# Checkpoints.
mkdir "$folder/foreign"
on_two_ranks generate "$folder/nowhere" --prompt a
refused 2 "$folder/nowhere"
on_two_ranks generate "$folder/foreign" --prompt a
refused 2 "$folder/foreign" "checkpoint"
echo '{"model_type": "llama", "hidden_size": 8}' >"$folder/foreign/config.json"
on_two_ranks eval "$folder/foreign" --data "$folder/text"
refused 2 "$folder/foreign/config.json" "llama" "deepseek"

if ((${#launcher[@]} > 0)); then
  on_two_ranks train "$run" --ranks 2
  refused 2 "--ranks = 2" "2 processes"
  # Only the second process finds no data: it says who it is, and takes the other one with it.
  # shellcheck disable=SC2016  # the shell of each rank expands it
  one_fails='if ((${OMPI_COMM_WORLD_RANK:-$PMI_RANK} == 1)); then exec "$0" train "$1" data=/nothing; else exec "$0" train "$1"; fi'
  launcher+=(bash -c "$one_fails")
  on_two_ranks "$run"
  refused 2 "rank 1 on" "/nothing"
else
  # Processes that a launcher started together and MPI knows apart: the first one tells.
  PMI_SIZE=2 PMI_RANK=0 alone train "$run"
  refused 3 "2 processes" "srun --mpi=pmix" "mpirun"
  PMI_SIZE=2 PMI_RANK=1 alone train "$run"
  ((code == 3)) || fail "exit code $code of the second process"
  [[ ! -s "$output" ]] || fail "the second process speaks too"
fi
