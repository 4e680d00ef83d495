#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The torch example equals the layer of one process, where torch and mpi4py are installed for a Python of the version that the
# module was built for. CADRE_TEST_PYTHON names one that is not in PATH. Usage: torch_test.sh PYTHON mpirun -n N...
set -euo pipefail

built_for=$("$1" -c 'import sys; print(*sys.version_info[:2])')
for python in "${CADRE_TEST_PYTHON:-}" "$1" python3; do
  [[ -n "$python" ]] || continue
  if [[ $("$python" -c 'import sys, torch, mpi4py; print(*sys.version_info[:2])' 2>/dev/null) == "$built_for" ]]; then
    exec "${@:2}" "$python" "$(dirname "$0")/../../launch/examples/torch_layer.py"
  fi
done
echo "skipped: no Python ${built_for/ /.} with torch and mpi4py (CADRE_TEST_PYTHON)"
exit 77
